package conformance_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-s3/csi-s3/test/minio"
)

// TestTwoNodes has one volume on two nodes at once, each with a driver and a cache of its own: who opens a file after
// another node closed it sees what that node wrote, and names that come and go show soon.
func TestTwoNodes(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	server := minio.Start(t)
	nodes := make([]*kubelet, 2)
	for i := range nodes {
		k := newKubelet(t, newProcessOn(t, fmt.Sprint("node-", i+1)), secrets(server))
		k.capability.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		if i == 0 {
			check(t, k.create("pvc-shared", nil))
		} else {
			k.volume = nodes[0].volume
		}
		check(t, k.stage())
		check(t, k.publish(false))
		nodes[i] = k
	}
	soon := func(what string, is func() bool) {
		t.Helper()
		const believed = time.Second // for which names are believed; see SEMANTICS.md
		end := time.Now().Add(believed + 10*time.Second)
		for !is() {
			if time.Now().After(end) {
				t.Fatalf("%s: not seen", what)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}

	const rounds = 16
	for i := range rounds {
		writer, reader := nodes[i%2], nodes[(i+1)%2]
		text := fmt.Sprintf("round %d of %s", i, writer.target)
		check(t, os.WriteFile(filepath.Join(writer.target, "same"), []byte(text), 0o644))
		if i == 0 {
			soon("a new file", func() bool { _, err := os.Stat(filepath.Join(reader.target, "same")); return err == nil })
		}
		if got, err := os.ReadFile(filepath.Join(reader.target, "same")); err != nil || string(got) != text {
			t.Fatalf("round %d: read %q, %v", i, got, err)
		}
		name := fmt.Sprint("new-", i)
		check(t, os.WriteFile(filepath.Join(writer.target, name), []byte(text), 0o644))
		soon(name, func() bool {
			got, err := os.ReadFile(filepath.Join(reader.target, name))
			return err == nil && string(got) == text
		})
		if i%2 == 0 {
			continue
		}
		check(t, os.Remove(filepath.Join(reader.target, name)))
		soon("the removal of "+name, func() bool {
			_, err := os.Stat(filepath.Join(writer.target, name))
			return errors.Is(err, fs.ErrNotExist)
		})
	}
	for _, k := range nodes {
		entries, err := os.ReadDir(k.target)
		if err != nil || len(entries) != 1+rounds/2 {
			t.Errorf("%s: %d names, %v", k.target, len(entries), err)
		}
	}
	for _, k := range nodes {
		check(t, k.unpublish())
		check(t, k.unstage())
	}
	check(t, nodes[0].delete())
}
