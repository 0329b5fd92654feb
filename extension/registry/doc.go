// Package registry reads and writes registries of extensions: a tree of files
// that anyone can host, in a directory, behind a web server, or in object
// storage. Nothing runs where it is hosted, and the host is not trusted.
//
//	the user's trusted keys
//	    │ sign
//	    ▼
//	N.root        who may sign what ──┐ publishers' keys, by package
//	    │ keys of timestamp and index │
//	    ▼                             │
//	timestamp     which index is the current one
//	    │ SHA-256                     │
//	    ▼                             ▼
//	index ──SHA-256──▶ statements of publishers on the versions of a package
//	                                  │ SHA-256
//	                                  ▼
//	                                archive
//
// All but the roots and the timestamps is kept by its SHA-256, under
// blobs/sha256, and never changes. doc/registry.md has the format.
//
// # Reading
//
// [Open] verifies root, timestamp and index before it returns a [Registry]; the
// statements on a package are verified when they are asked for, and an archive
// before anything looks into it. What is read before a signature was checked is
// bounded. What is refused is a *[Refused] that says why, and nothing of it was
// used. [OpenDirectory] and [OpenPGXN] read what is not signed; they are for what
// the user named, and [Registry.Signed] tells them apart. A [Set] is the
// registries that a user has.
//
// The first key comes from the user, by [Trust.Add], and from nowhere else. From
// there the roots lead on: each is signed by keys of the one before. What was seen
// last is remembered, so that an older state is not taken for the current one; a
// timestamp that expires bounds for how long a host can stand still unnoticed.
//
// When a server lets us wait, [Options.Waiting] is told. A location where a signed
// registry was seen ([Remembered]) must not be taken for a plain directory later.
//
// # Writing
//
// A [Writer] verifies, writes blobs, and then creates the next numbered
// timestamp, which one of several writers at once succeeds in:
//
//	blobs ──▶ index ──▶ N.timestamp (created, or somebody was faster) ──▶ timestamp
//
// Whatever prefix of this was written when the power went, the tree is whole. The
// last file only saves readers from counting: they look for what is numbered
// higher than it says.
//
// # Copying
//
// [Mirror] copies what is not there. What is there is verified before it is passed
// over: in a directory by size and SHA-256, which is a local read; in object storage
// by its size, because the store has its own checksums and reading all of it each
// time would cost what copying costs. Whoever reads verifies in any case.
//
// # Invariants
//
//   - Nothing is used that a trusted key does not vouch for, directly or through
//     the chain above, at the time it is used.
//   - A file other than "timestamp" never changes once it can be found.
//   - A version of a package never changes. It can be withdrawn.
//   - Versions of roots, timestamps and indexes only grow, for one client.
//
// The cryptography is minisign's; what is here decides what must be signed by
// whom. The roles are those of The Update Framework, whose snapshot and targets
// are one document here.
package registry
