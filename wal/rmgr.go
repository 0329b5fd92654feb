package wal

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
