package main

import (
	"slices"
	"strings"
	"testing"
)

func TestOurMounts(t *testing.T) {
	got, err := ourMounts(strings.NewReader(`22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw
300 28 0:60 /sub /var/lib/kubelet/pods/x/volume-subpaths/1 rw - fuse.csi-s3 csi-s3:b rw
301 28 0:60 / /var/lib/kubelet/plugins/kubernetes.io/csi/globalmount rw,nosuid shared:1 master:2 - fuse.csi-s3 csi-s3:b rw,user_id=0
302 28 0:60 / /var/lib/kubelet/pods/x/mount rw - fuse.csi-s3 csi-s3:b rw
303 28 0:61 / /mnt/with\040space\134 rw - fuse.csi-s3 csi-s3:c rw
304 28 0:62 / /mnt/other rw - fuse.sshfs x rw
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []mounted{
		{"0:60", "/var/lib/kubelet/plugins/kubernetes.io/csi/globalmount", true},
		{"0:61", `/mnt/with space\`, true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if _, err := ourMounts(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was parsed")
	}
}
