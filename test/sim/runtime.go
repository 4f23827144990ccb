package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// errGo: this Go is not one that can be changed so.
var errGo = errors.New("the Go runtime is another than the one these changes are for (1.26)")

// A change of a file of GOROOT/src: what stands there exactly once is replaced.
type change struct{ file, from, to string }

// changes make a Go runtime whose choices in a bubble of synctest depend on CSI_S3_SIM_LIFE alone, as long as it has one
// processor and collects no garbage.
var changes = []change{
	// A bubble has a stream of random numbers of its own (splitmix64), which begins with the seed. How often its goroutines
	// have to wait for others before a mutex is drawn once: 1/4, 1/16, 1/64, never.
	{"runtime/synctest.go", "type synctestBubble struct {\n", `type synctestBubble struct {
	stream uint64
	calm   uint64
`},
	{"runtime/synctest.go", "	bubble.now = synctestBaseTime\n", `	bubble.now = synctestBaseTime
	for _, digit := range []byte(gogetenv("CSI_S3_SIM_LIFE")) {
		bubble.stream = 10*bubble.stream + uint64(digit-'0')
	}
	bubble.stream = bubble.draw()
	bubble.calm = [...]uint64{3, 15, 63, ^uint64(0)}[bubble.draw()%4]
`},
	{"runtime/synctest.go", "// changegstatus is called when the non-lock status of a g changes.\n", `//go:nosplit
func (bubble *synctestBubble) draw() uint64 {
	bubble.stream += 0x9e3779b97f4a7c15
	x := bubble.stream
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

//go:linkname internal_sync_waver internal/sync.runtime_waver
func internal_sync_waver() {
	if gp := getg(); gp.bubble != nil && gp.m.locks == 0 && gp.bubble.draw()&gp.bubble.calm == 0 {
		goyield()
	}
}

// changegstatus is called when the non-lock status of a g changes.
`},
	// Maps, math/rand and hash/maphash ask rand; select and timers ask cheaprand, as the allocator and others do at times
	// of their own.
	{"runtime/rand.go", "func rand() uint64 {\n", `func rand() uint64 {
	if bubble := getg().bubble; bubble != nil {
		return bubble.draw()
	}
`},
	{"runtime/select.go", "cheaprandn(uint32(norder + 1))", "randn(uint32(norder + 1))"},
	{"runtime/time.go", "t.rand = cheaprand()", "t.rand = uint32(rand())"},
	// What is drawn once for the process: keys of hashes, the heap's address.
	{"runtime/rand.go", "	globalRand.state.Init(*seed)\n", `	clear(seed[:])
	globalRand.state.Init(*seed)
`},
	// Nobody looks from outside how long a goroutine runs or a system call takes.
	{"runtime/proc.go", `const haveSysmon = GOARCH != "wasm"`, "const haveSysmon = false"},
	// A goroutine that is made ready runs next, or when its turn comes.
	{"runtime/proc.go", "	if !haveSysmon && next {\n", "	if !haveSysmon && next && (gp.bubble == nil || gp.bubble.draw()&1 == 0) {\n"},
	// A thread is idle before another one that might need it runs: how many there are, and so where things are in memory,
	// does not depend on which is faster.
	{"runtime/proc.go", `	notewakeup(&mp.park)
	stopm()
}

// Stops the current m for stopTheWorld.
`, `	self := getg().m
	lock(&sched.lock)
	mput(self)
	unlock(&sched.lock)
	notewakeup(&mp.park)
	mPark()
	acquirep(self.nextp.ptr())
	self.nextp = 0
}

// Stops the current m for stopTheWorld.
`},
	// A mutex is handed over after a time of waiting, which here is virtual, too.
	{"runtime/sema.go", "func internal_sync_nanotime() int64 {\n", `func internal_sync_nanotime() int64 {
	if bubble := getg().bubble; bubble != nil {
		return bubble.now
	}
`},
	{"internal/sync/runtime.go", "//go:linkname runtime_nanotime\n", `//go:linkname runtime_waver
func runtime_waver()

//go:linkname runtime_nanotime
`},
	{"internal/sync/mutex.go", "func (m *Mutex) Lock() {\n", `func (m *Mutex) Lock() {
	runtime_waver()
`},
}

// overlay writes changed copies of the files of src, which is GOROOT/src, to dir, and returns the file for go build
// -overlay that names them. It returns errGo when a change does not fit.
func overlay(src, dir string) (string, error) {
	texts := map[string]string{}
	for _, c := range changes {
		if _, read := texts[c.file]; !read {
			text, err := os.ReadFile(filepath.Join(src, c.file))
			if err != nil {
				return "", err
			}
			texts[c.file] = string(text)
		}
		if n := strings.Count(texts[c.file], c.from); n != 1 {
			return "", fmt.Errorf("%w: %s has %d times %q", errGo, c.file, n, c.from)
		}
		texts[c.file] = strings.Replace(texts[c.file], c.from, c.to, 1)
	}
	replace := map[string]string{}
	for file, text := range texts {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_")+".txt") // no package of this tree
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(src, file)] = to
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, list, 0o600)
}
