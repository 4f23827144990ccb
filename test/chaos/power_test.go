package chaos_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/test/mountns"
)

const (
	diskSize   = 512 << 20 // of a cache's file system, in bytes; XFS wants 300 MiB
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	// shutdown is FS_IOC_SHUTDOWN, and noLogFlush its argument: the log keeps what is on the disk already.
	shutdown   = 0x8004587D
	noLogFlush = 2
)

// disk is a file system on a loop device whose power can be cut.
type disk struct {
	t                *testing.T
	kind, image, dir string
}

// newDisk makes a file system and mounts it.
func newDisk(t *testing.T, kind string, mkfs ...string) *disk {
	t.Helper()
	base := t.TempDir()
	d := &disk{t: t, kind: kind, image: filepath.Join(base, "ram", "image"), dir: filepath.Join(base, "disk")}
	// The image is in memory: a flush of the disk below would only take time.
	ram := filepath.Dir(d.image)
	if err := errors.Join(os.Mkdir(ram, 0o755), os.Mkdir(d.dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("ram", ram, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The loop device lets go of its file soon after the unmount.
		for end := time.Now().Add(stopWait); ; time.Sleep(10 * time.Millisecond) {
			err := syscall.Unmount(ram, 0)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Errorf("unmount %s: %v", ram, err)
				return
			}
		}
	})
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, diskSize); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], d.image)...).CombinedOutput(); err != nil { //nolint:gosec // fixed commands
		t.Fatalf("%v: %v\n%s", mkfs, err, out)
	}
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

// mount attaches a loop device and mounts it. The device goes with the mount.
func (d *disk) mount() {
	d.t.Helper()
	loop, err := d.attach()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := errors.Join(syscall.Mount(loop.Name(), d.dir, d.kind, 0, ""), loop.Close()); err != nil {
		d.t.Fatalf("mount %s: %v", loop.Name(), err)
	}
}

func (d *disk) attach() (*os.File, error) {
	image, err := os.OpenFile(d.image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for end := time.Now().Add(startWait); ; {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
			Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return loop, nil
		}
		_ = loop.Close() // it is not ours
		// Somebody else may have taken the device in between.
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return nil, err
		}
	}
}

func (d *disk) unmount() {
	d.t.Helper()
	if mountns.Type(d.t, d.dir) == "" {
		return
	}
	if err := syscall.Unmount(d.dir, 0); err != nil {
		d.t.Fatalf("unmount %s: %v", d.dir, err)
	}
}

// cut takes the power: nothing is written any more.
func (d *disk) cut() error {
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlSetPointerInt(fd, shutdown, noLogFlush)
}

// boots gives the processes of the test a boot ID that it can change.
type boots struct {
	t    *testing.T
	file string
}

func newBoots(t *testing.T) *boots {
	t.Helper()
	b := &boots{t, filepath.Join(t.TempDir(), "boot_id")}
	b.reboot()
	if err := syscall.Mount(b.file, bootIDFile, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(bootIDFile, 0); err != nil {
			t.Error(err)
		}
	})
	b.reboot()
	return b
}

// reboot changes the boot ID.
func (b *boots) reboot() {
	b.t.Helper()
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	text := fmt.Sprintf("%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	if err := os.WriteFile(b.file, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if mountns.Type(b.t, bootIDFile) == "" {
		return
	}
	if got, err := os.ReadFile(bootIDFile); err != nil || string(got) != text {
		b.t.Fatalf("the boot ID is %q (%v), should be %q", strings.TrimSpace(string(got)), err, text)
	}
}

// afterKill strikes the process alone first; what was recovered then must survive a loss of power.
func (r *rig) afterKill() blow {
	return blow{"just after the recovery from a kill", func() bool {
		fell, heal, cut := r.fell, r.heal, r.cut
		r.fell, r.heal, r.cut = func() {}, func() {}, false
		r.atRandom().run()
		r.recovered()
		r.fell, r.heal, r.cut = fell, heal, cut
		r.striker()()
		r.bury()
		return true
	}}
}

// powerCuts is the suite on one file system.
func powerCuts(t *testing.T, kind string, mkfs ...string) {
	t.Helper()
	if !ownMounts(t, mkfs[0]) {
		return
	}
	nothingLeft(t)
	boots := newBoots(t)
	d := newDisk(t, kind, mkfs...)
	r := newRig(t, "settle=20ms")
	r.cache = filepath.Join(d.dir, "cache")
	r.cut = true
	r.fell = func() {
		if err := d.cut(); err != nil {
			r.t.Errorf("shutdown of %s: %v", d.kind, err)
		}
	}
	r.heal = func() {
		d.unmount()
		boots.reboot()
		d.mount()
	}
	var points []blow
	for _, x := range requests {
		points = append(points, r.atRequest(x))
	}
	for _, c := range changes {
		points = append(points, r.atChange(c))
	}
	points = append(points, r.afterKill(), r.atStartTime(), r.atStartChange(startChanges[0]))
	for range 3 {
		points = append(points, r.atRandom())
	}
	r.run(points, figuresOr(figures{30, 0, 25, 100 * time.Second}, figures{100, 3, 0, 2 * time.Hour}))
}

// TestPowerCutExt4: what an fsync covered is there after a loss of power, on ext4.
func TestPowerCutExt4(t *testing.T) { powerCuts(t, "ext4", "mkfs.ext4", "-q", "-F") }

// TestPowerCutXFS is the same on XFS.
func TestPowerCutXFS(t *testing.T) { powerCuts(t, "xfs", "mkfs.xfs", "-q", "-f") }
