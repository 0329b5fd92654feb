package wal

// An Entry of a [History] is one ancestor: TLI is followed up to End, where the
// next timeline of the path begins.
type Entry struct {
	TLI    TLI
	End    LSN // the first byte that is not on TLI
	Reason string
}

// A History is the path from the first timeline to TLI: its ancestors in
// order, each with the LSN where the path left it.
type History struct {
	TLI     TLI
	Entries []Entry // ancestors only; TLI and End both increase
}
