package volume

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
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

// TestSimulation lives many lives.
func TestSimulation(t *testing.T) {
	seeds, first := uint64(300), uint64(0)
	if text := os.Getenv("CSI_S3_SIM_SEEDS"); text != "" {
		seeds, _ = strconv.ParseUint(text, 10, 64)
	}
	if text := os.Getenv("CSI_S3_SIM_SEED"); text != "" {
		first, _ = strconv.ParseUint(text, 10, 64)
		seeds = 1
	}
	tally := map[string]int{}
	begun := time.Now()
	bad := 0
	for seed := first; seed < first+seeds; seed++ {
		dog := time.AfterFunc(time.Minute, func() {
			stacks := make([]byte, 1<<22)
			panic(fmt.Sprintf("seed %d hangs\n%s", seed, stacks[:runtime.Stack(stacks, true)]))
		})
		l := simulate(t, seed, seeds == 1)
		dog.Stop()
		for what, n := range l.tally {
			tally[what] += n
		}
		if l.failed != nil {
			t.Errorf("seed %d: %v", seed, l.failed)
			fmt.Printf("FAILED %d %.200s\n", seed, l.failed)
			if bad++; bad > 20 {
				break
			}
		}
	}
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%8d %s", tally[what], what)
	}
	t.Logf("%d seeds in %v", seeds, time.Since(begun))
}
