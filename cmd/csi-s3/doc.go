// Command csi-s3 is the driver and its tools: flags, signals and wiring, no logic. Start reading at run in main.go;
// each command has a file of its name. Only main exits, with a code of exit.go.
package main
