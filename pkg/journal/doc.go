// Package journal is an append-only log of checked records: one per volume, shared by namespace and cache, so that
// one order covers names and bytes.
package journal
