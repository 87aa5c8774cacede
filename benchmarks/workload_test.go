package benchmarks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBuiltInWorkloadsAreGood(t *testing.T) {
	files, err := builtIn.ReadDir("workloads")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".yaml")
		w, err := Load(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if w.Name != name || w.About == "" {
			t.Errorf("%s is named %q and is about %q", f.Name(), w.Name, w.About)
		}
		if !strings.Contains(string(readme), "| `"+name+"` |") {
			t.Errorf("README.md does not list %s", name)
		}
	}
}

// A copy that a user has changed is read from its path.
func TestACopiedWorkloadIsRead(t *testing.T) {
	text, err := Source("steady")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mine.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "rate: 5000", "rate: 77", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := Load(file)
	if err != nil || w.Streams[0].Rate != 77 {
		t.Fatalf("%+v, %v", w, err)
	}
}

func TestMistakesInAWorkloadAreNamed(t *testing.T) {
	const head = "name: x\nduration: 1s\n"
	for _, tt := range []struct{ text, want string }{
		{"", "empty"},
		{head + "strems: []\n", "strems"},
		{head, "streams is missing"},
		{head + "streams: [{ rate: many }]\n", `rate "many": write records per second, or max`},
		{head + "streams: [{ rate: 1, size: huge }]\n", `size "huge"`},
		{head + "streams: [{ rate: 1, size: 10 }]\n", "streams[0].size is 10; it may be 28 to"},
		{head + "streams: [{ rate: max }]\n", "records (with rate: max)"},
		{head + "streams: [{ rate: 1, records: 5 }]\n", "records is for rate: max"},
		{"name: x\nstreams: [{ rate: 1 }]\n", "duration is missing"},
		{head + "streams: [{ rate: 1, spread: wide }]\n", `spread "wide"`},
		{head + "streams: [{ rate: 1, burst: { times: 5, for: 2s, every: 1s } }]\n", "for is shorter than every"},
		{head + "streams: [{ rate: 1, burst: { times: 5, for: 1s, every: 2s } }]\n", "duration 1s could be without one"},
		{head + "backlog: 1MiB\nstreams: [{ rate: 1 }]\n", "no consumers to read it"},
		{head + "streams: [{ rate: 1 }]\nsteps: [{ name: a }, { only: [b] }]\n", "steps[1].name is missing"},
		{head + "streams: [{ rate: 1 }]\nsteps: [{ name: a, only: [b] }]\n", `there is no stream "b"`},
		{"name: x\nduration: 100h\nstreams: [{ rate: 1000000 }]\n", "too many for one run"},
		{head + "one_client: true\nstreams: [{ rate: 1, transaction: 5 }]\n", "not with one_client"},
	} {
		if _, err := parseWorkload([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
	if _, err := Load("stedy"); err == nil || !strings.Contains(err.Error(), "steady") {
		t.Errorf("%v does not say what there is", err)
	}
}

func TestRecordsAreDueAsPlanned(t *testing.T) {
	p := Stream{Rate: 100}.plan(10 * time.Second)
	if p.records != 1000 || p.due(0) != 0 || p.due(500) != 5*time.Second {
		t.Errorf("%d records, the 500th at %v", p.records, p.due(500))
	}
	// 8 s of 100 a second and 2 s of 500, one and a half times.
	burst := Stream{Rate: 100, Burst: &Burst{Times: 5, For: Duration(2 * time.Second), Every: Duration(10 * time.Second)}}
	p = burst.plan(15 * time.Second)
	if p.records != 1800+500 {
		t.Errorf("%d records", p.records)
	}
	in := map[int]int{}
	last := time.Duration(-1)
	for i := range p.records {
		due := p.due(i)
		if due < last || due >= 15*time.Second {
			t.Fatalf("record %d is due at %v, after one at %v", i, due, last)
		}
		last = due
		in[int(due/time.Second)]++
	}
	for s, n := range in {
		want := 100
		if s == 8 || s == 9 {
			want = 500
		}
		if n < want-1 || n > want+1 {
			t.Errorf("second %d has %d records, want %d", s, n, want)
		}
	}
	if p := (Stream{Rate: MaxRate, Records: 7}).plan(0); p.records != 7 || p.due != nil {
		t.Errorf("%+v", p)
	}
}
