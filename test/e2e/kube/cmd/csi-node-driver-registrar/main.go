// Command csi-node-driver-registrar stands in for the sidecar of that name, which is not published as a Go module: it
// registers a CSI driver with the kubelet.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// server answers the kubelet (pluginregistration/v1).
type server struct {
	registration.UnimplementedRegistrationServer
	info *registration.PluginInfo
}

// GetInfo says which driver it is and where it listens.
func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return s.info, nil
}

// NotifyRegistrationStatus ends the process when the kubelet refuses, so that it is tried again.
func (s *server) NotifyRegistrationStatus(_ context.Context, r *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !r.PluginRegistered {
		log.Fatalf("the kubelet refuses the registration: %s", r.Error)
	}
	log.Printf("registered %s", s.info.Name)
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket as this container sees it")
	path := flag.String("kubelet-registration-path", "", "the driver's socket as the kubelet sees it")
	dir := flag.String("plugin-registration-path", "/registration", "the kubelet's directory of plugins")
	flag.Int("v", 0, "without effect")
	flag.Duration("timeout", 0, "without effect")
	flag.String("http-endpoint", "", "without effect")
	flag.Parse()
	log.Fatal(serve(*address, *path, *dir))
}

func serve(address, path, dir string) error {
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	name := ""
	for name == "" {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		r, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
		cancel()
		if err != nil {
			log.Print(err)
			time.Sleep(time.Second)
			continue
		}
		name = r.GetName()
	}
	socket := filepath.Join(dir, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	g := grpc.NewServer()
	registration.RegisterRegistrationServer(g, &server{info: &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: name, Endpoint: path, SupportedVersions: []string{"1.0.0"},
	}})
	return g.Serve(l)
}
