// Package namespace owns names: the tree of known inodes, the remote key that holds each one's bytes, the codec of
// attributes, and what has to happen in the bucket so that it equals the tree.
//
// # Two kinds of nodes
//
// A volatile node was learned from the bucket and may be forgotten at any moment. A tracked node has, or lately had,
// changes that the bucket does not hold: its whole state is one record in the journal, and the directories above it are
// tracked with it, so that a replay can put it back in its place. What the tree does not know, the bucket decides, except
// for keys that a tracked node owns or has left: those do not count (hidden).
//
// # The plan
//
// There is no list of operations. For each tracked node the plan compares the objects that the bucket holds of it (objs)
// with the keys that its names ask for, and finds one step at a time: Put, Copy, Delete, for directories Move and Purge,
// and, when the cache is full or a file grows, Spill: a part of an open file goes to an object of its own. Two generation
// counters, of the bytes and of the attributes, say whether an object is current. A step waits for others by keys alone;
// who waits is looked at again when a step that frees keys is done.
//
// # What is guaranteed
//
//   - A mutation that returned is in the journal, in one frame.
//   - A name that was replaced by rename is never without an object in the bucket.
//   - The only object that holds a file's bytes is not removed or overwritten before another holds them.
//   - An object that somebody else wrote is not replaced (see Conflict), unless Options.Overwrite says so.
//   - Tasks that Next has handed out and that were not ended never touch the same key.
//   - Inode numbers are never used twice in the life of a cache directory.
//
// # Locks
//
// Tree.mu guards everything and is held over appends to the journal, so that the order of records is the order of
// mutations. recMu is below it and guards the newest record of each tracked node for Dump, which runs while an append
// waits. Options.Settled is called under mu and must not call the tree; Options.Gone is called without locks.
//
// Start reading at node.go, then mutate.go, plan.go and, for directories, plandir.go.
package namespace
