package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dustin/go-humanize"

	"github.com/sluice-kafka/sluice/tiers"
)

const reference = "../docs/configuration.md"

// row is a line of a table in the reference: cells by the column's heading.
type row map[string]string

// tables returns the rows of all tables, by the first cell's code.
func tables(t *testing.T) (text string, rows map[string]row) {
	t.Helper()
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	rows = map[string]row{}
	var headings []string
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "|") {
			headings = nil
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case headings == nil:
			headings = cells
		case strings.HasPrefix(cells[0], "`"):
			if len(cells) != len(headings) {
				t.Errorf("%s has %d cells under %d headings", cells[0], len(cells), len(headings))
				continue
			}
			name := strings.Trim(cells[0], "`")
			if rows[name] != nil {
				t.Errorf("%s is documented twice", name)
			}
			rows[name] = row{}
			for i, heading := range headings {
				rows[name][heading] = cells[i]
			}
		}
	}
	return string(data), rows
}

func TestReferenceSaysWhatTheSchemaSays(t *testing.T) {
	text, rows := tables(t)
	known := map[string]bool{}
	code := func(s string) string { return "`" + s + "`" }
	for _, k := range schema() {
		if k.refused != "" {
			if !strings.Contains(text, code(k.path)) {
				t.Errorf("that %s is refused is not documented", k.path)
			}
			continue
		}
		for value := range k.refusedValues {
			if !strings.Contains(text, code(value)) {
				t.Errorf("that %s is refused for %s is not documented", value, k.path)
			}
		}
		path := shown(k.path)
		if strings.HasPrefix(k.path, "topics[]") {
			path = k.path
		}
		known[path] = true
		documented, ok := rows[path]
		if !ok {
			t.Errorf("%s is not documented", path)
			continue
		}
		want := row{"Key": code(path), "Type": string(k.kind), "Default": "required", "Range": "", "Change": "restart"}
		switch {
		case k.def != "":
			want["Default"] = code(k.def)
		case k.derived != "":
			want["Default"] = k.derived
		}
		switch {
		case k.from != "":
			want["Range"] = code(k.from) + " to " + code(k.to)
		case len(k.oneOf) > 0:
			want["Range"] = code(strings.Join(k.oneOf, "`, `"))
		}
		if k.live {
			want["Change"] = "live"
		}
		if strings.HasPrefix(k.path, "limits.") {
			want["Metric"] = code(k.metric)
		}
		for heading, cell := range want {
			if documented[heading] != cell {
				t.Errorf("%s: the reference says %s %q, the code %q", path, heading, documented[heading], cell)
			}
		}
	}
	for path, r := range rows {
		if r["Key"] != "" && !known[path] {
			t.Errorf("%s is documented, and there is no such key", path)
		}
	}
	types := map[string]bool{}
	for _, k := range schema() {
		types[string(k.kind)] = true
	}
	for kind := range types {
		if kind != "" && !strings.Contains(text, "\n| "+kind+" | `") {
			t.Errorf("how a %s is written is not documented", kind)
		}
	}
	if bound := humanize.Comma(maxPatterns) + " patterns"; !strings.Contains(text, bound) {
		t.Errorf("the bound of %s is not documented", bound)
	}
}

// The metrics belong to packages that this one must not import, so their names
// are looked for in the source.
func TestMetricsOfLimitsExist(t *testing.T) {
	registered := map[string]bool{}
	name := regexp.MustCompile(`"(sluice_[a-z_]+)"`)
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != ".." && (entry.Name() == "config" || strings.HasPrefix(entry.Name(), ".")):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		for _, m := range name.FindAllSubmatch(source, -1) {
			registered[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range schema() {
		if k.metric != "" && !registered[k.metric] {
			t.Errorf("%s: no package has a metric %s", k.path, k.metric)
		}
	}
}

func TestReferenceListsTheBuiltInClasses(t *testing.T) {
	_, rows := tables(t)
	documented := 0
	for _, r := range rows {
		if r["Class"] != "" {
			documented++
		}
	}
	if documented != len(builtins()) {
		t.Errorf("%d classes are documented, there are %d", documented, len(builtins()))
	}
	for _, c := range builtins() {
		want := row{"Tier": c.Tier.String(), "For": c.Summary, "Linger": "", "Object size": "", "Readahead": ""}
		if c.Tier == tiers.Diskless {
			want["Linger"] = "`" + c.Linger.String() + "`"
			want["Object size"] = "`" + strings.ReplaceAll(humanize.IBytesN(uint64(c.ObjectSize), 1), " ", "") + "`"
			want["Readahead"] = fmt.Sprintf("`%d`", c.Readahead)
		}
		for heading, cell := range want {
			if got := rows[c.Name][heading]; got != cell {
				t.Errorf("%s: the reference says %s %q, the code %q", c.Name, heading, got, cell)
			}
		}
	}
}

func TestReferenceExamplesWork(t *testing.T) {
	text, _ := tables(t)
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(examples) == 0 {
		t.Fatal("no examples")
	}
	for _, m := range examples {
		if _, err := Parse("example.yaml", []byte(m[1])); err != nil {
			t.Error(err)
		}
	}
	transcript := regexp.MustCompile("(?s)```\n(testdata/.*?)```").FindStringSubmatch(text)
	if transcript == nil {
		t.Fatal("no transcript of an error")
	}
	name, _, _ := strings.Cut(transcript[1], ":")
	_, err := Load(name)
	if err == nil || !strings.Contains(err.Error(), transcript[1]) {
		t.Errorf("the reference shows\n%s\nsluice says\n%v", transcript[1], err)
	}
}
