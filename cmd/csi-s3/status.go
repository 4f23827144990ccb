package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/fuse"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

// answerTime bounds how long status waits for one mount. A healthy one answers at once, whatever S3 does.
const answerTime = 5 * time.Second

func (p *process) statusCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "status",
		Short: "show every mount: what waits for the bucket, the cache, the last error",
		Long: `Status asks every csi-s3 mount that this process can see, those of pods and those of 'csi-s3 mount', and prints one
line for each volume. It never waits for S3. It exits 1 if a mount does not answer.`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error { return p.status(asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array, sizes in bytes and ages in seconds")
	return c
}

func (p *process) status(asJSON bool) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	all := make([]volume.Status, 0, len(mounts))
	silent := 0
	for _, m := range mounts {
		s, err := askStatus(m.dir)
		if err != nil {
			silent++
			s.LastError = "the mount does not answer: " + err.Error()
		}
		s.Dir = m.dir // where it is seen from here; its server may be in another mount namespace
		all = append(all, s)
	}
	if asJSON {
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(all)
	} else {
		err = p.printStatus(all)
	}
	if err != nil {
		return err
	}
	if silent > 0 {
		return fmt.Errorf("%d of %d mounts do not answer; 'umount -l DIR' removes one whose server is gone", silent, len(mounts))
	}
	return nil
}

// askStatus asks the server of one mount. A server that hangs leaves a goroutine behind, which ends with this process.
func askStatus(dir string) (volume.Status, error) {
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := fuse.Status(dir)
		answers <- answer{text, err}
	}()
	var s volume.Status
	select {
	case a := <-answers:
		if a.err != nil {
			return s, a.err
		}
		return s, json.Unmarshal(a.text, &s)
	case <-time.After(answerTime):
		return s, fmt.Errorf("no answer for %v", answerTime)
	}
}

func (p *process) printStatus(all []volume.Status) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(p.stdout, "no csi-s3 mounts")
		return err
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tDIR\tDIRTY\tFILES\tQUEUE\tOLDEST\tCACHE\tHITS\tHIDDEN\tLAST ERROR")
	for _, s := range all {
		oldest := "-"
		if s.OldestAge > 0 {
			oldest = time.Duration(s.OldestAge * float64(time.Second)).Round(time.Second).String()
		}
		lastError := s.LastError
		if lastError == "" {
			lastError = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%.0f%%\t%d\t%s\n", s.ID, s.Dir, config.FormatSize(s.Dirty), s.DirtyFiles, s.Queue,
			oldest, config.FormatSize(s.CacheUsed), 100*s.HitRate, s.Hidden, lastError)
	}
	return w.Flush()
}

func readMounts() ([]mounted, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return ourMounts(f)
}
