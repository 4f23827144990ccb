package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// probeTime bounds a whole probe: some fifty short requests.
const probeTime = 2 * time.Minute

func (p *process) probeCommand() *cobra.Command {
	var f mountFlags
	asJSON := false
	c := &cobra.Command{
		Use:   "probe [flags] s3://BUCKET[/PREFIX]",
		Short: "find out what a server really supports, and what follows from it",
		Long: `Probe sends some fifty short requests that write, copy and remove scratch objects below .csi-s3/probe/ of the
volume, and looks at what the server makes of their conditions: some servers refuse what they do not know, others answer
with success and ignore it. The result is kept in .csi-s3/probe.json, where mounts look for it; they probe by
themselves when there is none of the last 24 hours.

It fails when something could not be found out.`,
		Example: `  csi-s3 probe --endpoint http://127.0.0.1:9000 s3://data`,
		Args:    exactly("s3://BUCKET[/PREFIX]"),
		RunE:    func(c *cobra.Command, args []string) error { return p.probe(c.Context(), f, asJSON, args[0]) },
	}
	f.server(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the record as JSON; what is not in it is unknown")
	return c
}

func (p *process) probe(ctx context.Context, f mountFlags, asJSON bool, source string) error {
	at, err := parsePlace(source)
	if err != nil {
		return err
	}
	b, done, err := p.connect(ctx, f, &at)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	record, why := s3probe.Ask(ctx, b, at.prefix+volmeta.Dir, at.endpoint)
	if asJSON {
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(record)
	} else {
		err = p.printAnswers(record.Answers)
	}
	if why != nil {
		why = fmt.Errorf("%s of %s: not all could be found out: %w", at, at.endpoint, why)
	}
	return errors.Join(err, why)
}

func (p *process) printAnswers(answers s3probe.Answers) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FEATURE\tSUPPORTED")
	for _, feature := range s3probe.Features() {
		answer := answers[feature]
		if answer == s3probe.Unknown {
			answer = "unknown"
		}
		fmt.Fprintf(w, "%s\t%s\n", feature, answer)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, line := range consequences(answers) {
		fmt.Fprintf(p.stdout, "- %s\n", line)
	}
	return nil
}

// consequences says what follows for a mount.
func consequences(answers s3probe.Answers) []string {
	has := func(features ...s3.Feature) bool {
		for _, f := range features {
			if answers[f] != s3probe.Honoured {
				return false
			}
		}
		return true
	}
	var lines []string
	for _, c := range []struct {
		features  []s3.Feature
		yes, less string
	}{
		{
			[]s3.Feature{s3.PutIfNoneMatch, s3.PutIfMatch, s3.CompleteIfNoneMatch, s3.CompleteIfMatch},
			"uploads never replace what others wrote",
			"uploads look at the object before they replace it: what others write in that moment is replaced, and each costs a HEAD",
		},
		{
			[]s3.Feature{s3.CopySourceIfMatch, s3.CopyPartIfMatch},
			"copies on the server are of the object that was meant",
			"copies on the server look at their source first",
		},
		{
			[]s3.Feature{s3.CopyIfNoneMatch, s3.CopyIfMatch},
			"renames never replace what others wrote",
			"renames look at the new name before they write there: what others write in that moment is replaced",
		},
		{
			[]s3.Feature{s3.DeleteIfMatch},
			"removals never take what others wrote, and cost one request",
			"removals look at the object first: what others write in that moment is removed",
		},
		{
			[]s3.Feature{s3.StoredChecksum, s3.MultipartChecksum},
			"whole objects are checked by the checksum stored with them",
			"not every object has a checksum to be checked by: over plain HTTP those are read twice and compared",
		},
		{
			[]s3.Feature{s3.MultipartRange},
			"",
			"THE SERVER DOES NOT SERVE RANGES OF OBJECTS: it cannot be used",
		},
		{
			[]s3.Feature{s3.EncodedKeys},
			"",
			"objects whose keys have control characters are refused or not listed right",
		},
		{
			[]s3.Feature{s3.MultiDelete},
			"",
			"removing many objects in one request does not work: directories may not go away",
		},
	} {
		line := c.less
		if has(c.features...) {
			line = c.yes
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
