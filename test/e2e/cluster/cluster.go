package cluster

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed node.sh
var nodeScript []byte

const (
	// Node is the node's name.
	Node = "e2e-node"
	// Addr is the node's address, which pods reach.
	Addr    = "10.200.0.1"
	svcAddr = "10.96.0.1"
	cgroup  = "csi-s3-e2e"

	kubeletDir = "/var/lib/kubelet"
)

// global are the settings that the kubelet changes and that no namespace isolates.
var global = []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// Cluster is a running cluster.
type Cluster struct {
	run, bin string
	launcher *exec.Cmd
	ended    chan struct{} // closed when the launcher is gone
	pid      int           // of the first process, as seen from here
	saved    map[string]string
	madeDir  bool // kubeletDir
}

// Up starts a cluster below dir with the binaries of bin and returns when its node is ready and the images are there.
// It needs root. What a cluster that was killed left is cleaned up first.
func Up(ctx context.Context, dir, bin string, images []Image) (_ *Cluster, err error) {
	c := &Cluster{run: dir, bin: bin, ended: make(chan struct{}), saved: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Down())
		}
	}()
	for _, d := range []string{"log", "pki", "etcd", "containerd", "kubelet", "cni", "varlog", "conf", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, im := range images {
		if err := im.Pack(filepath.Join(dir, "images", im.fileName())); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(kubeletDir, 0o755); err == nil {
		c.madeDir = true
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	for _, name := range global {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return nil, err
		}
		c.saved[name] = strings.TrimSpace(string(value))
	}
	if err := makeCgroups(); err != nil {
		return nil, err
	}
	script := filepath.Join(dir, "node.sh")
	if err := os.WriteFile(script, nodeScript, 0o755); err != nil {
		return nil, err
	}
	if err := c.launch(script); err != nil {
		return nil, err
	}
	return c, c.ready(ctx)
}

// launch starts the first process. It ends when this process does.
func (c *Cluster) launch(script string) error {
	log, err := os.Create(filepath.Join(c.run, "log", "node.log"))
	if err != nil {
		return err
	}
	defer log.Close()                                                                                             //nolint:errcheck // the child has its own descriptor
	c.launcher = exec.Command("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", //nolint:noctx // it lives until Down
		"--propagation", "slave", "--mount-proc", script)
	c.launcher.Env = append(os.Environ(), "RUN="+c.run, "BIN="+c.bin, "NODE="+Node, "NODE_IP="+Addr, "SVC_IP="+svcAddr, "CGROOT="+cgroup)
	c.launcher.Stdout, c.launcher.Stderr = log, log
	c.launcher.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // ends with the launcher
		// The death signal comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.ended)
		err := c.launcher.Start()
		started <- err
		if err == nil {
			_ = c.launcher.Wait() // it is killed
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	children := fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", c.launcher.Process.Pid)
	for range 200 {
		text, err := os.ReadFile(children)
		if err != nil {
			return fmt.Errorf("the node ended at once: %w", err)
		}
		if c.pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the node's first process does not show")
}

// ready waits for what a cluster needs before it can be used.
func (c *Cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, step := range []struct {
		what string
		is   func() bool
	}{
		{"components", func() bool { return c.exists("started") }},
		{"images", func() bool { return c.exists("images.ready") || c.exists("images.failed") }},
		{"node", func() bool {
			out, err := c.Kubectl(ctx, "", "get", "node", Node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			return err == nil && out == "True"
		}},
		{"service account", func() bool { _, err := c.Kubectl(ctx, "", "-n", "default", "get", "sa", "default"); return err == nil }},
		{"untainted", func() bool {
			out, err := c.Kubectl(ctx, "", "get", "node", Node, "-o", "jsonpath={.spec.taints}")
			return err == nil && out == ""
		}},
	} {
		for !step.is() {
			select {
			case <-c.ended:
				return fmt.Errorf("the node ended before its %s: %s", step.what, c.Log("node"))
			case <-ctx.Done():
				return fmt.Errorf("wait for the %s: %w: %s", step.what, ctx.Err(), c.Log("node"))
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	if c.exists("images.failed") {
		return fmt.Errorf("an image cannot be imported: %s", c.Log("images"))
	}
	return nil
}

func (c *Cluster) exists(name string) bool {
	_, err := os.Stat(filepath.Join(c.run, name))
	return err == nil
}

// Log returns the end of a component's log.
func (c *Cluster) Log(component string) string {
	text, err := os.ReadFile(filepath.Join(c.run, "log", component+".log"))
	if err != nil {
		return err.Error()
	}
	const most = 16 << 10
	return string(text[max(0, len(text)-most):])
}

// Kubectl runs kubectl as the cluster's administrator and returns its output. An error has what it complained of.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.in(ctx, stdin, []string{"-n"}, append([]string{filepath.Join(c.bin, "kube"), "kubectl"}, args...)...)
}

// Helm runs helm as the cluster's administrator and returns its output.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.in(ctx, "", []string{"-n"}, append([]string{filepath.Join(c.bin, "helm")}, args...)...)
}

// Network runs a program of this machine in the node's network.
func (c *Cluster) Network(ctx context.Context, args ...string) (string, error) {
	return c.in(ctx, "", []string{"-n"}, args...)
}

// Kubeconfig is the administrator's.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.run, "conf", "admin.kubeconfig") }

// Run runs a program of this machine among the node's mounts, processes and network.
func (c *Cluster) Run(ctx context.Context, args ...string) (string, error) {
	return c.in(ctx, "", []string{"-m", "-n", "-p"}, args...)
}

func (c *Cluster) in(ctx context.Context, stdin string, namespaces []string, args ...string) (string, error) {
	enter := append([]string{"-t", strconv.Itoa(c.pid)}, namespaces...)
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	// Helm keeps what it downloads in its home.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "HOME="+c.run)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return out.String(), nil
}

// Listen opens a socket on the node's address: what this process serves there, pods reach.
func (c *Cluster) Listen(port int) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine and takes the network namespace with it.
		runtime.LockOSThread()
		l, err := func() (net.Listener, error) {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", c.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			defer unix.Close(fd) //nolint:errcheck // it was only named
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			return net.Listen("tcp", net.JoinHostPort(Addr, strconv.Itoa(port))) //nolint:noctx // nothing to wait for
		}()
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("listen on the node: %w", r.err)
	}
	return r.l, nil
}

// Mounts returns the lines of the node's mount table that contain a text.
func (c *Cluster) Mounts(text string) ([]string, error) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.pid))
	if err != nil {
		return nil, err
	}
	var found []string
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			found = append(found, lines.Text())
		}
	}
	return found, nil
}

// Path is where a path of the node is found from here.
func (c *Cluster) Path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", c.pid), name)
}

// Processes returns the process IDs, as seen from here, of the node's processes with this command name.
func (c *Cluster) Processes(name string) ([]int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, comm := range all {
		dir := filepath.Dir(comm)
		text, err := os.ReadFile(comm)
		if err != nil || strings.TrimSpace(string(text)) != name {
			continue // it ended meanwhile
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && c.below(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// below says whether a process descends from the node's first one.
func (c *Cluster) below(pid int) bool {
	for pid > 1 {
		if pid == c.pid {
			return true
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			return false
		}
	}
	return false
}

// Down ends the cluster and all its processes and mounts. It is an error when something of it is left.
func (c *Cluster) Down() error {
	var errs []error
	if c.launcher != nil && c.launcher.Process != nil {
		// The first process dies with the launcher (--kill-child), everything else in its namespaces with it.
		if err := c.launcher.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		<-c.ended
		for i := 0; c.pid != 0 && unix.Kill(c.pid, 0) == nil; i++ {
			if i == 300 {
				errs = append(errs, fmt.Errorf("process %d of the node lives on", c.pid))
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for name, value := range c.saved {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, removeCgroups(), unseal(filepath.Join(c.run, "kubelet", "plugins")))
	if c.madeDir {
		errs = append(errs, os.Remove(kubeletDir))
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && bytes.Contains(table, []byte(" "+c.run)) {
		err = fmt.Errorf("a mount below %s is left", c.run)
	}
	return errors.Join(append(errs, err)...)
}

// unseal lets directories be removed that a driver had made immutable when it was killed.
func unseal(root string) error {
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()        //nolint:errcheck // nothing was written through it
		const immutable = 0x10 // FS_IMMUTABLE_FL of ioctl_iflags(2)
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil || flags&immutable == 0 {
			return nil // not sealed, or a file system that cannot
		}
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
