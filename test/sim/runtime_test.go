package sim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOverlay changes a runtime that has the places that are changed, and refuses one in which a place is missing or is
// there twice.
func TestOverlay(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	write := func(texts map[string]string) {
		for file, text := range texts {
			name := filepath.Join(src, file)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	texts := map[string]string{}
	for _, c := range changes {
		texts[c.file] += "before\n" + c.from + "after\n"
	}
	write(texts)
	if _, err := overlay(src, dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		text, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(c.file, "/", "_")+".txt"))
		if err != nil || !strings.Contains(string(text), c.to) || strings.Contains(strings.ReplaceAll(string(text), c.to, ""), c.from) {
			t.Errorf("%s is not changed, %v:\n%s", c.file, err, text)
		}
	}
	for _, c := range changes {
		for _, text := range []string{strings.ReplaceAll(texts[c.file], c.from, ""), texts[c.file] + c.from} {
			write(map[string]string{c.file: text})
			if _, err := overlay(src, dir); !errors.Is(err, errGo) {
				t.Errorf("%q of %s is missing or there twice, and it is said: %v", c.from, c.file, err)
			}
		}
		write(texts)
	}
}
