package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
)

// What the answers mean is told from the worst line on: a server that lacks one of a group lacks it.
func TestProbeTells(t *testing.T) {
	for _, c := range []struct {
		answers     s3probe.Answers
		has, hasNot []string
	}{
		{
			s3probe.All(s3probe.Honoured),
			[]string{"put if-match", "yes", "uploads never replace", "renames never replace", "removals never take"},
			[]string{"CANNOT", "directories may not", "look at", "unknown"},
		},
		{
			s3probe.Answers{s3.PutIfMatch: s3probe.Honoured, s3.PutIfNoneMatch: s3probe.Ignored},
			[]string{"ignored", "unknown", "uploads look at the object", "renames look at", "removals look at", "it cannot be used"},
			[]string{"never"},
		},
	} {
		p := testProcess(nil)
		var out strings.Builder
		p.stdout = &out
		if err := p.printAnswers(c.answers); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.has {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q is missing in\n%s", want, out.String())
			}
		}
		for _, bad := range c.hasNot {
			if strings.Contains(out.String(), bad) {
				t.Errorf("%q is in\n%s", bad, out.String())
			}
		}
		if n := strings.Count(out.String(), "\n"); n < len(s3probe.Features()) {
			t.Errorf("%d lines", n)
		}
	}
}

// A server that listings come from and nothing else: the command says that nothing was found out, and why.
func TestProbeOfAServerThatFails(t *testing.T) {
	url := answering(t, 200, `<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>`)
	p := testProcess(map[string]string{"AWS_ACCESS_KEY_ID": "AKtest", "AWS_SECRET_ACCESS_KEY": "secret-of-test", "HOME": t.TempDir()})
	var out strings.Builder
	p.stdout = &out
	err := p.run(t.Context(), []string{"probe", "--json", "--endpoint", url, "s3://b/p"})
	if err == nil || exitCode(err) != exitUnavailable || !strings.Contains(err.Error(), "s3://b/p/") || strings.Contains(err.Error(), "secret-of-test") {
		t.Errorf("%v", err)
	}
	var record s3probe.Record
	if err := json.Unmarshal([]byte(out.String()), &record); err != nil || len(record.Answers) > 0 {
		t.Errorf("%s: %v", out.String(), err)
	}
	for _, args := range [][]string{{"probe"}, {"probe", "b"}, {"probe", "s3://b", "more"}} {
		if err := testProcess(nil).run(t.Context(), args); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}
