package wal

import (
	"fmt"
	"strings"
)

// A RMgr is a resource manager: the part of the server that wrote a record and
// replays it.
type RMgr uint8

// The resource managers that are built in, in the order of rmgrlist.h. The
// numbers have not changed since 10; XLOG2 came with 19.
const (
	RMgrXLOG RMgr = iota
	RMgrTransaction
	RMgrStorage
	RMgrCLOG
	RMgrDatabase
	RMgrTablespace
	RMgrMultiXact
	RMgrRelMap
	RMgrStandby
	RMgrHeap2
	RMgrHeap
	RMgrBtree
	RMgrHash
	RMgrGin
	RMgrGist
	RMgrSequence
	RMgrSPGist
	RMgrBRIN
	RMgrCommitTs
	RMgrReplicationOrigin
	RMgrGeneric
	RMgrLogicalMessage
	RMgrXLOG2
)

// String is the resource manager's name as pg_waldump prints it. Those of
// extensions are custom128 to custom255.
func (rm RMgr) String() string {
	switch {
	case int(rm) < len(rmgrs):
		return rmgrs[rm].name
	case rm >= rmgrMinCustom:
		return fmt.Sprintf("custom%03d", uint8(rm))
	}
	return fmt.Sprintf("unknown%03d", uint8(rm))
}

// rmgrs names each resource manager and its operations, which are the high half
// of a record's info. A dash is one that is not used. (The rm_identify routines
// of src/backend/access/rmgrdesc.)
var rmgrs = [...]struct {
	name string
	// init: the highest bit is not of the operation; it says that replay makes
	// the page anew.
	init bool
	ops  []string
}{
	RMgrXLOG: {"XLOG", false, strings.Fields(`CHECKPOINT_SHUTDOWN CHECKPOINT_ONLINE NOOP NEXTOID SWITCH BACKUP_END
		PARAMETER_CHANGE RESTORE_POINT FPW_CHANGE END_OF_RECOVERY FPI_FOR_HINT FPI ASSIGN_LSN OVERWRITE_CONTRECORD
		CHECKPOINT_REDO LOGICAL_DECODING_STATUS_CHANGE`)},
	RMgrTransaction: {"Transaction", false, strings.Fields(`COMMIT PREPARE ABORT COMMIT_PREPARED ABORT_PREPARED
		ASSIGNMENT INVALIDATION`)},
	RMgrStorage:    {"Storage", false, strings.Fields(`- CREATE TRUNCATE`)},
	RMgrCLOG:       {"CLOG", false, strings.Fields(`ZEROPAGE TRUNCATE`)},
	RMgrDatabase:   {"Database", false, strings.Fields(`CREATE_FILE_COPY CREATE_WAL_LOG DROP`)},
	RMgrTablespace: {"Tablespace", false, strings.Fields(`CREATE DROP`)},
	RMgrMultiXact:  {"MultiXact", false, strings.Fields(`ZERO_OFF_PAGE ZERO_MEM_PAGE CREATE_ID TRUNCATE_ID`)},
	RMgrRelMap:     {"RelMap", false, strings.Fields(`UPDATE`)},
	RMgrStandby:    {"Standby", false, strings.Fields(`LOCK RUNNING_XACTS INVALIDATIONS`)},
	RMgrHeap2: {"Heap2", true, strings.Fields(`REWRITE PRUNE_ON_ACCESS PRUNE_VACUUM_SCAN PRUNE_VACUUM_CLEANUP VISIBLE
		MULTI_INSERT LOCK_UPDATED NEW_CID`)},
	RMgrHeap: {"Heap", true, strings.Fields(`INSERT DELETE UPDATE TRUNCATE HOT_UPDATE HEAP_CONFIRM LOCK INPLACE`)},
	RMgrBtree: {"Btree", false, strings.Fields(`INSERT_LEAF INSERT_UPPER INSERT_META SPLIT_L SPLIT_R INSERT_POST DEDUP
		DELETE UNLINK_PAGE UNLINK_PAGE_META NEWROOT MARK_PAGE_HALFDEAD VACUUM REUSE_PAGE META_CLEANUP`)},
	RMgrHash: {"Hash", false, strings.Fields(`INIT_META_PAGE INIT_BITMAP_PAGE INSERT ADD_OVFL_PAGE SPLIT_ALLOCATE_PAGE
		SPLIT_PAGE SPLIT_COMPLETE MOVE_PAGE_CONTENTS SQUEEZE_PAGE DELETE SPLIT_CLEANUP UPDATE_META_PAGE
		VACUUM_ONE_PAGE`)},
	RMgrGin: {"Gin", false, strings.Fields(`- CREATE_PTREE INSERT SPLIT VACUUM_PAGE DELETE_PAGE UPDATE_META_PAGE
		INSERT_LISTPAGE DELETE_LISTPAGE VACUUM_DATA_LEAF_PAGE`)},
	RMgrGist:     {"Gist", false, strings.Fields(`PAGE_UPDATE DELETE PAGE_REUSE PAGE_SPLIT - - PAGE_DELETE ASSIGN_LSN`)},
	RMgrSequence: {"Sequence", false, strings.Fields(`LOG`)},
	RMgrSPGist: {"SPGist", false, strings.Fields(`- ADD_LEAF MOVE_LEAFS ADD_NODE SPLIT_TUPLE PICKSPLIT VACUUM_LEAF
		VACUUM_ROOT VACUUM_REDIRECT`)},
	RMgrBRIN:              {"BRIN", true, strings.Fields(`CREATE_INDEX INSERT UPDATE SAMEPAGE_UPDATE REVMAP_EXTEND DESUMMARIZE`)},
	RMgrCommitTs:          {"CommitTs", false, strings.Fields(`ZEROPAGE TRUNCATE SETTS`)},
	RMgrReplicationOrigin: {"ReplicationOrigin", false, strings.Fields(`SET DROP`)},
	RMgrGeneric:           {"Generic", false, nil},
	RMgrLogicalMessage:    {"LogicalMessage", false, strings.Fields(`MESSAGE`)},
	RMgrXLOG2:             {"XLOG2", false, strings.Fields(`CHECKSUMS`)},
}

// oldOperations are the names that operations had up to a major version.
var oldOperations = []struct {
	upTo int
	rm   RMgr
	op   int
	name string
}{
	{13, RMgrHeap2, 1, "CLEAN"},
	{13, RMgrHeap2, 2, "FREEZE_PAGE"},
	{13, RMgrHeap2, 3, "CLEANUP_INFO"},
	{14, RMgrDatabase, 0, "CREATE"},
	{14, RMgrDatabase, 1, "DROP"},
	{16, RMgrHeap2, 1, "PRUNE"},
	{16, RMgrHeap2, 2, "VACUUM"},
	{16, RMgrHeap2, 3, "FREEZE_PAGE"},
}

// Operation names what the record does, as pg_waldump does: INSERT+INIT,
// CHECKPOINT_ONLINE. One that is not known is UNKNOWN (a0).
func (rec *Record) Operation() string {
	if rec.RMgr == RMgrGeneric {
		return "Generic"
	}
	info := rec.Info & rmgrInfoMask
	if int(rec.RMgr) < len(rmgrs) {
		rm := &rmgrs[rec.RMgr]
		op, suffix := int(info>>4), ""
		if rm.init && info&0x80 != 0 {
			op, suffix = op&7, "+INIT"
		}
		if rec.RMgr == RMgrTransaction {
			op &= 7 // XLOG_XACT_OPMASK; the bit above is XLOG_XACT_HAS_INFO
		}
		for _, old := range oldOperations {
			if rec.major <= old.upTo && rec.RMgr == old.rm && op == old.op {
				return old.name + suffix
			}
		}
		if op < len(rm.ops) && rm.ops[op] != "-" {
			return rm.ops[op] + suffix
		}
	}
	return fmt.Sprintf("UNKNOWN (%x)", info)
}
