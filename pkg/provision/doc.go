// Package provision does the controller's work in the bucket: it creates, deletes, resizes and looks for volumes. It
// mounts nothing and remembers nothing: what it knows is in the ownership record of each volume (package volmeta).
//
// A volume is made in this order: the bucket, if there is none; then the record, which must be new. A crash between
// the two leaves a bucket without record, which the next Create of that name takes when it holds nothing. A volume is
// removed in the opposite order: the record is marked, so that nobody uses the volume any more; then open uploads and
// objects, in all versions, in passes of pages until a pass finds nothing; then the record; then the bucket, if it was
// made for this volume. Every step may be repeated, so a call that broke off is finished by calling again.
//
// What has no record of ours is not ours: Create does not take it over and Delete does not touch it.
//
// Calls for one volume wait for each other within a process. Between processes the record decides: it is written with
// a precondition.
//
// The errors are the sentinels below, wrapped with the volume ID and the cause. None holds a credential.
package provision
