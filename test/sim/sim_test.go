package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	lives    = 10_000  // what every run has
	soak     = 100_000 // with CSI_S3_SOAK
	repeated = 200     // so many of them are lived twice
	failures = 10      // so many are enough
	patience = 5 * time.Minute
)

// life is what pkg/volume says of one life.
type life struct {
	Hash    uint64
	Tally   map[string]int
	Happens []string
	Failed  string

	all string // that happened
}

// build makes the program that lives one life, in a place that is always the same.
func build(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", "bin", "sim"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join("..", "..", "pkg", "volume")
	env := exec.CommandContext(t.Context(), "go", "env", "GOROOT")
	env.Dir = source
	root, err := env.Output()
	if err != nil {
		t.Fatal(err)
	}
	list, err := overlay(filepath.Join(strings.TrimSpace(string(root)), "src"), dir)
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "volume.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", list, "-o", binary, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

// live lives the life of a seed. Nothing of what surrounds it is in its environment. A life that does not end, not even in
// virtual time, is an error with the stacks of all its goroutines.
func live(ctx context.Context, binary string, seed uint64) (life, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.run=^TestSimulation$")
	cmd.Args[0] = "life"
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=1GiB", "GOTRACEBACK=all", fmt.Sprintf("CSI_S3_SIM_LIFE=%d", seed)}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	line, all, _ := bytes.Cut(out, []byte("\n"))
	var l life
	if jerr := json.Unmarshal(line, &l); jerr != nil {
		return l, fmt.Errorf("it broke off: %w, %w\n%s", err, jerr, out)
	}
	if (err != nil) != (l.Failed != "") {
		return l, fmt.Errorf("it ended with %w and said %q\n%s", err, l.Failed, all)
	}
	l.all = string(all)
	return l, nil
}

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// replay lives the life of one seed and says all that happens in it.
func replay(t *testing.T, binary string, seed uint64) {
	t.Helper()
	l, err := live(t.Context(), binary, seed)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	t.Logf("seed %d, hash %x\n%s", seed, l.Hash, l.all)
	if l.Failed != "" {
		t.Errorf("seed %d: %s", seed, l.Failed)
	}
}

// TestLives lives the lives of many seeds, some of them twice: a life that is another the second time is a failure of its
// own, for then no failure can be repeated. CSI_S3_SIM_SEED=N begins at a seed, CSI_S3_SIM_SEEDS=N lives so many;
// CSI_S3_SIM_LIFE=N lives one alone.
func TestLives(t *testing.T) {
	binary := build(t)
	if os.Getenv("CSI_S3_SIM_LIFE") != "" {
		replay(t, binary, number(t, "CSI_S3_SIM_LIFE", 0))
		return
	}
	n := uint64(lives)
	if os.Getenv("CSI_S3_SOAK") != "" {
		n = soak
	}
	first, n := number(t, "CSI_S3_SIM_SEED", 0), number(t, "CSI_S3_SIM_SEEDS", n)
	begun := time.Now()

	var (
		mu       sync.Mutex
		next     = first
		bad      int
		twice    int
		required []string
		tally    = map[string]int{}
		hashes   = map[uint64]bool{}
	)
	// take returns the next seed, and whether there is one.
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= first+n && bad < failures
	}
	// one lives a seed; a failing one is lived twice, too.
	one := func(seed uint64) {
		l, err := live(t.Context(), binary, seed)
		again, second := life{}, seed%max(1, n/repeated) == 0 || l.Failed != ""
		if err == nil && second {
			again, err = live(t.Context(), binary, seed)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			bad++
			t.Errorf("seed %d, which make replay SEED=%d repeats: %v", seed, seed, err)
			return
		case l.Failed != "":
			bad++
			t.Errorf("seed %d: %s\nits whole life, which make replay SEED=%d repeats:\n%s", seed, l.Failed, seed, l.all)
		}
		if second && again.Hash != l.Hash {
			bad++
			t.Errorf("seed %d does not repeat itself: %s", seed, difference(l.all, again.all))
		}
		if second {
			twice++
		}
		for what, n := range l.Tally {
			tally[what] += n
		}
		hashes[l.Hash], required = true, l.Happens
	}
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				one(seed)
			}
		})
	}
	wg.Wait()
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%8d %s", tally[what], what)
	}
	t.Logf("%d lives, %d of them different, %d lived twice, in %v", n, len(hashes), twice, time.Since(begun).Round(time.Second))
	if t.Failed() || n < lives {
		return
	}
	if uint64(len(hashes)) < n*99/100 || twice < repeated {
		t.Errorf("the test tested little")
	}
	for _, what := range required {
		if tally[what] == 0 {
			t.Errorf("the test tested nothing: no %s", what)
		}
	}
}

// difference shows the first line in which two lives differ.
func difference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	i := 0
	for i < min(len(x), len(y)) && x[i] == y[i] {
		i++
	}
	return fmt.Sprintf("from line %d\n%s\nand\n%s", i+1, strings.Join(x[i:min(i+5, len(x))], "\n"), strings.Join(y[i:min(i+5, len(y))], "\n"))
}
