package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// The controller needs nothing but its socket. It serves, shows metrics, and ends well when it is told to.
func TestDriver(t *testing.T) {
	dir, err := os.MkdirTemp("", "csi") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	socket := filepath.Join(dir, "csi.sock")
	signals := make(chan os.Signal, 2)
	p := testProcess(nil)
	p.signals = signals
	ended := make(chan error)
	go func() { // ends with the signal below
		ended <- p.run(context.Background(), []string{"driver", "--mode=controller", "--endpoint=unix://" + socket, "--metrics-addr=" + addr, "--memory=64Mi", "--driver-name=s3.example"})
	}()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetName() != "s3.example" || info.GetVendorVersion() != version {
		t.Errorf("%v, %v", info, err)
	}
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(text), `csi_s3_rpc_duration_seconds_count{code="OK",method="/csi.v1.Identity/GetPluginInfo"} 1`) {
		t.Errorf("metrics: %v\n%s", err, text)
	}
	signals <- syscall.SIGTERM
	if err := <-ended; err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestDriverFails(t *testing.T) {
	taken := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := "--endpoint=unix://" + filepath.Join(t.TempDir(), "s")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--mode=some"}, exitUsage, "--mode"},
		{[]string{"--mode=node", "--cache-dir=/c"}, exitUsage, "--node-id"},
		{[]string{"--node-id=n"}, exitUsage, "--cache-dir"},
		{[]string{"--mode=controller", "--endpoint=tcp://127.0.0.1:1"}, exitUsage, "unix://"},
		{[]string{"--mode=controller", "extra"}, exitUsage, "extra"},
		{[]string{"--nosuch"}, exitUsage, "nosuch"},
		{[]string{"--mode=controller", "--endpoint=unix://" + taken}, exitFailure, taken},
		{[]string{"--mode=controller", socket, "--metrics-addr=256.0.0.1:1"}, exitFailure, "256.0.0.1:1"},
	} {
		err := testProcess(nil).run(t.Context(), append([]string{"driver"}, c.args...))
		if exitCode(err) != c.code || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: code %d, %v", c.args, exitCode(err), err)
		}
	}
}

// Every flag of the chart's arguments is a flag of the command, with a help text.
func TestDriverFlags(t *testing.T) {
	c := testProcess(nil).driverCommand()
	for _, f := range config.ProcessFlags() {
		got := c.Flags().Lookup(f.Name)
		if got == nil || got.Usage == "" || got.Value.Type() != f.Form {
			t.Errorf("--%s: %+v", f.Name, got)
		}
	}
}
