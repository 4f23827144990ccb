// Command csi-s3-demo shows the main job on one machine, without a cluster and without a network: it starts an S3
// server on loopback, runs the CSI driver on a unix socket, makes a volume as Kubernetes would, and shows a file on its
// way from a directory to an object and back. On a terminal it then waits, with the directory to play in. It leaves
// nothing behind: no mount, no process, no file.
//
// It is a module of its own, so that the S3 server's many dependencies stay out of the driver.
//
// The process serves the mount, so it never touches the mount itself: a request to itself could wait for itself. All
// file operations run in child processes.
package main
