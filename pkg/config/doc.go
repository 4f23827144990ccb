// Package config holds the process flags and the volume parameters as plain structs: defaults, units, validation. It
// is read by cmd, driver, provision and volume; packages below volume have Options of their own.
package config
