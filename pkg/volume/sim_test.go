package volume

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// simulate lives the life of a seed in virtual time.
func simulate(t *testing.T, seed uint64) (l *life) {
	synctest.Test(t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, seed)
		l = newLife(seed)
		l.run()
		l.tuning.views.Close()
	})
	return l
}

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) (n uint64, set bool) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n, true
}

// happens is what many lives must have had for them to prove something.
var happens = []string{
	"kill", "power cut", "disk fault", "before", "after", "short", "corrupt", "delay", "error200", "outage", "hang", "auth",
	"s3 Put", "s3 Copy", "s3 CompleteUpload", "s3 AbortUpload", "s3 DeleteMany", "rename", "renamedir", "link", "fsync", "stranger",
}

// told is what one life says of itself to test/sim.
type told struct {
	Hash    uint64 // of all that happened
	Tally   map[string]int
	Happens []string
	Failed  string
}

// tell lives one life and prints a line of what it was and then all that happened in it.
func tell(t *testing.T, seed uint64) {
	l := simulate(t, seed)
	x := told{Hash: l.hash, Tally: l.tally, Happens: happens}
	if l.failed != nil {
		x.Failed = l.failed.Error()
		t.Fail()
	}
	line, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n%s\n", line, strings.Join(l.lines, "\n"))
}

// TestSimulation lives many lives of a volume on a memory bucket and a memory disk that fail, with kills and losses of
// power anywhere. After each request that changes the bucket, every object is a state that its file had under that name
// (invariant I2), and in the end, all being well again, the bucket holds what was written and nothing else.
//
// Here the lives run on all processors, with the race detector if the tests have it: what happens at one moment of virtual
// time happens in any order, so that a seed alone does not repeat a life. test/sim lives them in an order that the seed
// decides, each in a process of its own for which CSI_S3_SIM_LIFE names the seed.
// CSI_S3_SIM_SEED=N begins at a life, CSI_S3_SIM_SEEDS=N lives so many.
func TestSimulation(t *testing.T) {
	if seed, one := number(t, "CSI_S3_SIM_LIFE", 0); one {
		tell(t, seed)
		return
	}
	seeds, set := number(t, "CSI_S3_SIM_SEEDS", 200)
	first, _ := number(t, "CSI_S3_SIM_SEED", 0)
	tally := map[string]int{}
	begun := time.Now()
	bad := 0
	for seed := first; seed < first+seeds && bad < 10; seed++ {
		dog := time.AfterFunc(5*time.Minute, func() {
			stacks := make([]byte, 1<<22)
			panic(fmt.Sprintf("seed %d hangs\n%s", seed, stacks[:runtime.Stack(stacks, true)]))
		})
		l := simulate(t, seed)
		dog.Stop()
		for what, n := range l.tally {
			tally[what] += n
		}
		if l.failed != nil {
			t.Errorf("seed %d: %v\nits whole life:\n%s", seed, l.failed, strings.Join(l.lines, "\n"))
			bad++
		}
	}
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%8d %s", tally[what], what)
	}
	t.Logf("%d seeds in %v", seeds, time.Since(begun))
	if set {
		return
	}
	for _, what := range happens {
		if tally[what] == 0 {
			t.Errorf("the test tested nothing: no %s", what)
		}
	}
}
