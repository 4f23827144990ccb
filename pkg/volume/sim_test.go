package volume

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// simulate lives the life of a seed in virtual time.
func simulate(t *testing.T, seed uint64, print bool) (l *life) {
	synctest.Test(t, func(t *testing.T) {
		l = newLife(t, seed, print)
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

// TestSimulation lives many lives of a volume on a memory bucket and a memory disk that fail, with kills and losses of
// power anywhere. After each request that changes the bucket, every object is a state that its file had under that name
// (invariant I2), and in the end, all being well again, the bucket holds what was written and nothing else.
// CSI_S3_SIM_SEED=N begins at a life, and says all that happens in it if it is the only one; CSI_S3_SIM_SEEDS=N lives so many.
func TestSimulation(t *testing.T) {
	seeds, _ := number(t, "CSI_S3_SIM_SEEDS", 200)
	if os.Getenv("CSI_S3_SOAK") != "" {
		seeds = 100_000
	}
	first, one := number(t, "CSI_S3_SIM_SEED", 0)
	if one && os.Getenv("CSI_S3_SIM_SEEDS") == "" {
		seeds = 1
	}
	one = seeds == 1
	tally := map[string]int{}
	begun := time.Now()
	bad := 0
	for seed := first; seed < first+seeds && bad < 10; seed++ {
		dog := time.AfterFunc(5*time.Minute, func() {
			stacks := make([]byte, 1<<22)
			panic(fmt.Sprintf("seed %d hangs\n%s", seed, stacks[:runtime.Stack(stacks, true)]))
		})
		l := simulate(t, seed, one)
		dog.Stop()
		for what, n := range l.tally {
			tally[what] += n
		}
		if os.Getenv("CSI_S3_SIM_TRACE") != "" {
			t.Logf("trace of seed %d: %x", seed, l.hash)
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
	if one {
		return
	}
	for _, what := range []string{
		"kill", "power cut", "disk fault", "before", "after", "short", "corrupt", "delay", "error200", "outage", "hang", "auth",
		"s3 Put", "s3 Copy", "s3 CompleteUpload", "s3 AbortUpload", "s3 DeleteMany", "rename", "renamedir", "link", "fsync", "stranger",
	} {
		if tally[what] == 0 {
			t.Errorf("the test tested nothing: no %s", what)
		}
	}
}
