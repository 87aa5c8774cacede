package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what was seen into testdata/bad/*.want")

// Every file of testdata/bad says in its first line what it shows. What the
// operator sees of it is in the .want beside it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range append(files, "testdata/bad/nowhere.yaml") {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			cfg, err := Load(file)
			var problems Problems
			if cfg != nil || !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("Load gave %v, %v", cfg, err)
			}
			seen := err.Error()
			if strings.Contains(seen, "hunter2") {
				t.Errorf("a secret shows in:\n%s", seen)
			}
			for i, p := range problems {
				if i > 0 && p.Line < problems[i-1].Line {
					t.Errorf("line %d stands after line %d", p.Line, problems[i-1].Line)
				}
				if p.What == "" || p.Remedy == "" || p.File != file || (p.Line > 0) != (p.Excerpt != "") {
					t.Errorf("incomplete: %+v", p)
				}
			}
			want := strings.TrimSuffix(file, ".yaml") + ".want"
			if *update {
				if err := os.WriteFile(want, []byte(seen), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			wanted, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if seen != string(wanted) {
				t.Errorf("saw\n%s\nwant\n%s", seen, wanted)
			}
		})
	}
}
