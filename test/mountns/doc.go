// Package mountns runs tests that mount in a mount namespace of their own: what such a test mounts nobody else sees, and it is
// gone with the process, whatever becomes of the test.
package mountns
