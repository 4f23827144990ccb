// Package inode holds the plain values that every layer above the seams shares: the inode number, the attributes and
// their kinds. It is pure and does no I/O.
//
// An Ino is never reused within one cache directory, not even across restarts: a new process must be able to answer
// for every number that the kernel still holds.
package inode
