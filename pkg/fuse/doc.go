// Package fuse is the adapter between the kernel's FUSE protocol and the core: one short method for each operation, and
// no decision of its own.
//
// control.go is the other way into a mount: ioctls on any of its directories, which reach the server whatever process
// and mount namespace it lives in. The server answers them; Flush and Status ask.
package fuse
