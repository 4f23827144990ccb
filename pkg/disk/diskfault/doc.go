// Package diskfault injects errors into any disk: every call asks a function first, which may refuse it or let only a
// part of a write through.
package diskfault
