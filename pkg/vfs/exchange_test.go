package vfs_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// TestPlacesAreExchanged: what waits in the bucket for what waits for it gives way, and nothing is lost.
func TestPlacesAreExchanged(t *testing.T) {
	chmod := func(v *volume, p string) {
		m := uint32(0o701)
		_, _, err := v.SetAttr(ctx, root, v.ino(p), 0, vfs.SetAttr{Mode: &m})
		v.ok(err)
	}
	for name, test := range map[string]struct {
		do   func(v *volume)
		want []string
	}{
		"a file and a directory": {func(v *volume) {
			v.put("b", "file")
			v.put("a/b", "below")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a", "file", "b/b", "below"}},
		"and it has changes": {func(v *volume) {
			v.put("b", "file")
			v.put("a/b", "below")
			chmod(v, "a/b")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a", "file", "b/b", "below"}},
		"a file takes the name of its directory": {func(v *volume) {
			v.put("a/b", "below")
			v.ok(v.rename("a", "c", 0))
			v.ok(v.rename("c/b", "a", 0))
		}, []string{"a", "below", "c/", ""}},
		"two files take the names of each other's directory": {func(v *volume) {
			v.put("a/x", "1")
			v.put("b/y", "2")
			v.ok(v.rename("a/x", "s", 0))
			v.ok(v.rename("b/y", "t", 0))
			v.ok(v.rmdir("a"))
			v.ok(v.rmdir("b"))
			v.ok(v.rename("s", "b", 0))
			v.ok(v.rename("t", "a", 0))
		}, []string{"b", "1", "a", "2"}},
		"two directories, one of them new": {func(v *volume) {
			v.put("b/c", "below")
			v.mkdir("a")
			v.flush()
			v.write("a/f", "x")
			v.write("b/c", "z")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a/c", "z", "b/", "", "b/f", "x"}},
		"a directory moves below its old self": {func(v *volume) {
			v.put("b/a", "below")
			v.mkdir("c")
			v.ok(v.rename("b", "c/b", 0))
			v.ok(v.rename("c", "b", 0))
		}, []string{"b/", "", "b/b/a", "below"}},
		"and back up": {func(v *volume) {
			v.put("b/b/a", "below")
			v.ok(v.rename("b/b", "c", 0))
			v.ok(v.rmdir("b"))
			v.ok(v.rename("c", "b", 0))
		}, []string{"b/a", "below"}},
		"a directory leaves one that goes, and a file leaves it": {func(v *volume) {
			v.put("d/sub/f", "1")
			v.put("d/sub/g", "2")
			v.ok(v.rename("d/sub", "a", 0))
			v.ok(v.rmdir("d"))
			v.ok(v.unlink("a/f"))
			v.write("a/g", "new")
		}, []string{"a/", "", "a/g", "new"}},
		"two directories with markers": {func(v *volume) {
			v.mkdir("a")
			v.mkdir("b")
			v.flush()
			v.kill()
			v.mkdir("a/b")
			v.ok(v.rename("a", "b", vfs.RenameExchange))
		}, []string{"a/", "", "b/", "", "b/b/", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, config{})
			test.do(v)
			v.kill()
			v.flush()
			v.wantObjects(test.want...)
			v.kill()
			v.wantObjects(test.want...)
		})
	}
}

// TestAChangeMeetsAMove: a file that is changed, renamed or removed while the objects of its directory are on their way,
// or after the way was broken off, leaves neither a conflict nor a copy of what it was.
func TestAChangeMeetsAMove(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(v *volume)
		want []string
	}{
		"changed":        {func(v *volume) { v.write("b/2", "new") }, []string{"b/1", "1", "b/2", "new", "b/3", "3"}},
		"renamed":        {func(v *volume) { v.ok(v.rename("b/2", "b/4", 0)) }, []string{"b/1", "1", "b/4", "2", "b/3", "3"}},
		"removed":        {func(v *volume) { v.ok(v.unlink("b/2")) }, []string{"b/1", "1", "b/3", "3"}},
		"goes elsewhere": {func(v *volume) { v.ok(v.rename("b", "c", 0)) }, []string{"c/1", "1", "c/2", "2", "c/3", "3"}},
		"goes back":      {func(v *volume) { v.ok(v.rename("b", "a", 0)) }, []string{"a/1", "1", "a/2", "2", "a/3", "3"}},
		"all are removed": {func(v *volume) {
			v.ok(v.unlink("b/1"))
			v.ok(v.unlink("b/2"))
			v.ok(v.unlink("b/3"))
			v.ok(v.rmdir("b"))
		}, nil},
	} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, broken off: %v", name, fails), func(t *testing.T) {
				v := newVolume(t, config{settle: 1})
				v.quirks(s3mem.NoCopyConditions())
				for _, n := range []string{"1", "2", "3"} {
					v.put("a/"+n, n)
				}
				v.wantNames("a", "1", "2", "3")
				copied, goOn := make(chan struct{}, 100), make(chan struct{})
				v.faulty(func(op s3fault.Op) s3fault.Action {
					if op.Name != "Copy" {
						return s3fault.Action{}
					}
					if op.Key == "b/3" { // the others are copied
						copied <- struct{}{}
						<-goOn
						if fails {
							return s3fault.FailBefore(s3.ErrInvalid)
						}
					}
					return s3fault.Action{}
				})
				v.ok(v.rename("a", "b", 0))
				<-copied
				if fails {
					go close(goOn)
					v.kill()
					test.do(v)
				} else {
					test.do(v)
					close(goOn)
				}
				v.faulty(nil)
				v.flush()
				v.kill()
				v.flush()
				got := v.objects()
				delete(got, "b/") // a directory that lost a name has a marker
				want := map[string]string{}
				for i := 0; i < len(test.want); i += 2 {
					want[test.want[i]] = test.want[i+1]
				}
				if !maps.Equal(got, want) {
					t.Errorf("the bucket has %q, want %q", got, want)
				}
			})
		}
	}
}

// TestDirectoriesCross: a directory moves to where one that is now inside it still has its objects, and a new one takes
// the place of another that has not left it yet, whatever the bucket has got by then.
func TestDirectoriesCross(t *testing.T) {
	pause := func() { time.Sleep(time.Duration(rand.N(300)) * time.Microsecond) }
	for range 60 {
		v := newVolume(t, config{settle: 1})
		v.put("a/a", "AA")
		v.put("b/a/c/c", "BACC")
		v.put("d/c", "DC")
		v.ok(v.truncate("a/a", 1))
		pause()
		v.ok(v.rename("a", "b/b", 0))
		pause()
		v.ok(v.rename("b", "a", 0))
		v.ok(v.rename("d", "e", 0))
		pause()
		v.mkdir("d")
		if rand.N(2) == 0 {
			v.kill()
		}
		v.wantNames("d")
		v.wantNames("a", "a", "b")
		v.flush()
		v.wantObjects("a/a/c/c", "BACC", "a/b/a", "A", "d/", "", "e/c", "DC")
		v.wantNames("d")
	}
}

// TestADirectoryMeetsAMove: a directory that is renamed while the objects of the one above it are on their way, some of
// its own already copied, is found under its new name alone, at any time.
func TestADirectoryMeetsAMove(t *testing.T) {
	for name, test := range map[string]struct {
		to   []string // the names that b/d gets, one after the other
		want []string
	}{
		"inside":          {[]string{"b/f"}, []string{"b/f/1", "1", "b/f/2", "2", "b/z", "3"}},
		"deeper":          {[]string{"b/e/f"}, []string{"b/e/", "", "b/e/f/1", "1", "b/e/f/2", "2", "b/z", "3"}},
		"inside and back": {[]string{"b/f", "b/d"}, []string{"b/d/1", "1", "b/d/2", "2", "b/z", "3"}},
		"out":             {[]string{"f"}, []string{"f/1", "1", "f/2", "2", "b/z", "3"}},
		"out and back":    {[]string{"f", "b/d"}, []string{"b/d/1", "1", "b/d/2", "2", "b/z", "3"}},
		"to the old name": {[]string{"a"}, []string{"a/1", "1", "a/2", "2", "b/z", "3"}},
	} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, broken off: %v", name, fails), func(t *testing.T) {
				v := newVolume(t, config{settle: 1})
				v.quirks(s3mem.NoCopyConditions())
				v.put("a/d/1", "1")
				v.put("a/d/2", "2")
				v.put("a/z", "3")
				if name == "deeper" {
					v.put("a/e/", "")
				}
				copied, goOn := make(chan struct{}, 100), make(chan struct{})
				var copies atomic.Int32
				v.faulty(func(op s3fault.Op) s3fault.Action {
					switch {
					case op.Name != "Copy":
					case op.Key == "b/d/1" || op.Key == "b/d/2":
						copies.Add(1)
					case op.Key == "b/z": // the others are copied
						for copies.Load() < 2 {
							time.Sleep(time.Millisecond)
						}
						time.Sleep(5 * time.Millisecond)
						copied <- struct{}{}
						<-goOn
						if fails {
							return s3fault.FailBefore(s3.ErrInvalid)
						}
					}
					return s3fault.Action{}
				})
				v.ok(v.rename("a", "b", 0))
				<-copied
				if fails {
					close(goOn)
					v.kill()
				}
				now := "b/d"
				names := func() {
					t.Helper()
					want := map[string]string{}
					for i := 0; i < len(test.want); i += 2 {
						if !strings.HasSuffix(test.want[i], "/") {
							want[strings.Replace(test.want[i], test.to[len(test.to)-1]+"/", now+"/", 1)] = test.want[i+1]
						}
					}
					got := map[string]string{}
					var walk func(at string)
					walk = func(at string) {
						list, err := v.tryList(at)
						v.ok(err)
						for _, n := range list {
							n = strings.TrimPrefix(at+"/"+n, "/")
							a, err := v.walk(n)
							v.ok(err)
							if a.IsDir() {
								if n != "b" && n != "b/e" && n != now {
									t.Errorf("there is a directory %q, %q is called %q now", n, "b/d", now)
								}
								walk(n)
								continue
							}
							got[n], err = v.tryRead(n)
							v.ok(err)
						}
					}
					walk("")
					if !maps.Equal(got, want) {
						t.Errorf("called %q the files are %q, want %q", now, got, want)
					}
				}
				for _, to := range test.to {
					v.ok(v.rename(now, to, 0))
					now = to
					names()
				}
				if !fails {
					close(goOn)
				}
				v.faulty(nil)
				for range 20 {
					v.pass(2 * time.Minute)
					names()
					time.Sleep(500 * time.Microsecond)
				}
				v.flush()
				names()
				v.kill()
				v.flush()
				names()
				got := v.objects()
				delete(got, "b/") // a directory that lost a name has a marker
				want := map[string]string{}
				for i := 0; i < len(test.want); i += 2 {
					want[test.want[i]] = test.want[i+1]
				}
				if !maps.Equal(got, want) {
					t.Errorf("the bucket has %q, want %q", got, want)
				}
			})
		}
	}
}
