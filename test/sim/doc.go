// Package sim lives the simulated lives of a volume (pkg/volume, TestSimulation) so that a seed repeats its life exactly:
// the same calls in the same order at the same moments, to the last line of what happened.
//
// Virtual time (testing/synctest) leaves to chance what happens at one moment of it: which goroutine runs next, which
// ready case a select takes, in which order timers fire and maps are ranged over, what math/rand draws. Here a life is a
// process of its own, with one processor and no garbage collection, built with a Go runtime that asks the seed in each of
// these choices (runtime.go). So the choices still differ from seed to seed; and between two of them, before any lock of a
// mutex, a goroutine may have to wait for the others, as it would on more than one processor.
//
// The runtime is that of the Go that builds it, changed on the way to the compiler (go build -overlay); nothing of Go is
// kept here. A Go whose runtime does not have the places that are changed is refused.
//
// A life is the same on one machine, with one Go and one state of this tree. Elsewhere it is so unless more than eight
// goroutines wait for one context or a set of more than eight is ranged over by address: a heap may be laid out otherwise.
//
// It is a module of its own, so that its minutes are spent where the lives are asked for. It needs nothing.
package sim
