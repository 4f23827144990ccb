// Package namespace owns names: the tree of known inodes, the remote key that holds each one's bytes, the codec of
// attributes, and what has to happen in the bucket so that it equals the tree.
package namespace
