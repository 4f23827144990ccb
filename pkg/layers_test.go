package pkg_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the import path of this directory.
const module = "github.com/csi-s3/csi-s3/pkg/"

// layers is the package map, top first: each package and all it may import. A package that is not named imports
// nothing of ours; x/helper may import x.
var layers = map[string]string{
	"driver":    "provision volume config metrics",
	"provision": "volmeta s3 s3/s3probe s3/s3sdk config metrics",
	"volume":    "fuse vfs namespace writeback fetch cache journal disk inode keeper volmeta s3 s3/s3probe s3/s3sdk config metrics",
	"keeper":    "",
	"kube":      "config",
	"fuse":      "vfs inode metrics",
	"vfs":       "inode namespace cache fetch writeback s3 extent metrics",
	"writeback": "namespace fetch cache journal disk inode s3 extent metrics",
	"fetch":     "cache inode s3 extent metrics",
	"namespace": "inode journal s3 metrics",
	"cache":     "journal extent disk inode metrics",
	"journal":   "disk",
	"volmeta":   "s3",
}

// owners names the packages that may import an outside library. What is not named is free.
var owners = map[string]string{
	"github.com/aws/aws-sdk-go-v2":                "s3/s3sdk",
	"github.com/aws/smithy-go":                    "s3/s3sdk",
	"github.com/hanwen/go-fuse":                   "fuse",
	"github.com/dgraph-io/ristretto":              "vfs", // one instance per process, shared by all mounts
	"google.golang.org/grpc":                      "driver",
	"google.golang.org/protobuf":                  "driver",
	"github.com/kubernetes-csi/csi-lib-utils":     "driver",
	"github.com/container-storage-interface/spec": "driver",
	"github.com/moby/sys/mountinfo":               "volume",
	"k8s.io":                                      "kube",
	"github.com/prometheus/client_golang":         "metrics",
	"github.com/spf13/cobra":                      "", // cmd only
	"github.com/spf13/pflag":                      "",
}

// TestLayers holds the tree to the map: imports go only down, an outside library has one owner, and every package has
// exactly one package comment. Test files are exempt, so that a test may use any fake.
func TestLayers(t *testing.T) {
	comments := map[string]int{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		comments[dir] += min(1, len(f.Doc.Text()))
		if f.Doc != nil && filepath.Base(path) != "doc.go" {
			t.Errorf("%s holds the package comment: it belongs in doc.go", path)
		}
		imports := make([]string, 0, len(f.Imports))
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, imp)
		}
		for _, fault := range faults(dir, imports) {
			t.Errorf("%s %s", path, fault)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, n := range comments {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", dir, n)
		}
	}
}

// TestLayersFinds plants one fault of each kind: a map that lets everything pass would be worse than none.
func TestLayersFinds(t *testing.T) {
	for _, c := range []struct{ dir, imp string }{
		{"cache", module + "s3"},
		{"s3", module + "s3/s3sdk"},
		{"vfs", module + "fuse"},
		{"inode", module + "extent"},
		{"volume", "github.com/aws/aws-sdk-go-v2/service/s3"},
		{"provision", "google.golang.org/grpc/codes"},
		{"driver", "github.com/spf13/cobra"},
	} {
		if got := faults(c.dir, []string{c.imp}); len(got) != 1 {
			t.Errorf("%s importing %s: %d faults, want 1", c.dir, c.imp, len(got))
		}
	}
	if got := faults("s3/s3mem", []string{module + "s3", "fmt"}); len(got) != 0 {
		t.Errorf("a helper importing its parent: %v", got)
	}
}

// faults says what is wrong with the imports of the package in dir.
func faults(dir string, imports []string) []string {
	var out []string
	allowed := strings.Fields(layers[dir])
	if parent, _, ok := strings.Cut(dir, "/"); ok {
		allowed = append(allowed, parent)
	}
	for _, imp := range imports {
		if ours, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(allowed, ours) {
			out = append(out, "imports "+ours+": not in the package map")
		}
		for lib, owner := range owners {
			if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(strings.Fields(owner), dir) {
				out = append(out, "imports "+lib+": only "+orCmd(owner)+" may")
			}
		}
	}
	return out
}

func orCmd(owner string) string {
	if owner == "" {
		return "cmd"
	}
	return owner
}
