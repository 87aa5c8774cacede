// Package tools pins the programs that building and testing sluice needs, and
// holds the rules about imports against the linter that enforces them.
package tools

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sluice-kafka/sluice"

// mayImport is the layering, written a second time: for each package, what of
// sluice its non-test files may import. "*" stands for all that isn't tests' or
// the benchmark's.
var mayImport = map[string][]string{
	"tiers":                       {},
	"proxy/wire":                  {},
	"admin":                       {},
	"turns":                       {},
	"router":                      {"tiers"},
	"cost":                        {"tiers"},
	"config":                      {"tiers", "router"},
	"proxy":                       {"tiers", "router", "proxy/wire", "turns"},
	"lowlatency":                  {"tiers"},
	"diskless":                    {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/compactor":          {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/gc":                 {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/audit":              {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/diskcache":          {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/retention":          {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/keyring":            {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/objstore":           {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/objstore/storetest": {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/placeholder":        {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/footer":             {"tiers", "proxy/wire", "diskless/*", "turns"},
	"diskless/segment":            {"tiers", "proxy/wire", "diskless/*", "turns"},
	"server":                      {"*", "!cli", "!dev", "!upkeep"},
	"dev":                         {"*", "!cli"},
	"upkeep":                      {"*", "!cli", "!dev"},
	"cli":                         {"*", "benchmarks"},
	"harness":                     {"*", "harness", "integration", "benchmarks"},
	"integration":                 {"*", "harness", "integration", "benchmarks"},
	"benchmarks":                  {"*", "!cli"},
}

// leafTests are the packages whose tests obey the rule as well.
var leafTests = []string{"tiers", "proxy/wire", "admin", "router", "turns"}

func allowed(from, to string) bool {
	rules := mayImport[from]
	named := slices.Contains([]string{"harness", "integration", "benchmarks"}, to) // never part of "*"
	switch {
	case slices.Contains(rules, "!"+to):
		return false
	case slices.Contains(rules, to):
		return true
	case slices.Contains(rules, "diskless/*") && (to == "diskless" || strings.HasPrefix(to, "diskless/")):
		return true
	}
	return slices.Contains(rules, "*") && !named
}

// Every package of the repository has a rule: a new one is placed on purpose.
func TestEveryPackageHasItsPlace(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", "{{.ImportPath}}", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		name := strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
		if _, ok := mayImport[name]; !ok && name != "" && !strings.HasPrefix(name, "harness/") {
			t.Errorf("package %s has no rule; add it to .depguard.yaml and to mayImport", name)
		}
	}
}

// One package at a time imports all others, from a file and from a test; the
// linter must name exactly the imports that the table forbids.
func TestPlantedImportsAreFound(t *testing.T) {
	out, err := exec.Command("go", "tool", "-n", "depguard").Output()
	if err != nil {
		t.Fatal(err)
	}
	depguard := strings.TrimSpace(string(out))
	rules, err := os.ReadFile("../.depguard.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for from := range mayImport {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, ".depguard.yaml", string(rules))
			write(t, dir, "go.mod", "module "+module+"\n\ngo 1.26.0\n")
			var imports strings.Builder
			want := map[string][]string{}
			for to := range mayImport {
				if to == from {
					continue
				}
				write(t, dir, to+"/doc.go", "package "+path.Base(to)+"\n")
				fmt.Fprintf(&imports, "import _ %q\n", module+"/"+to)
				if !allowed(from, to) {
					want["planted.go"] = append(want["planted.go"], to)
					if slices.Contains(leafTests, from) {
						want["planted_test.go"] = append(want["planted_test.go"], to)
					}
				}
			}
			for _, file := range []string{"planted.go", "planted_test.go"} {
				write(t, dir, from+"/"+file, "package "+path.Base(from)+"\n"+imports.String())
			}

			cmd := exec.Command(depguard, "./"+from)
			cmd.Dir = dir
			report, err := cmd.CombinedOutput()
			if forbidden := len(want) > 0; forbidden != (err != nil) {
				t.Errorf("exit: %v, with %d files that break rules", err, len(want))
			}
			got := map[string][]string{}
			for _, m := range regexp.MustCompile(`(\w+\.go):\d+:\d+: import '`+module+`/([^']+)'`).FindAllStringSubmatch(string(report), -1) {
				if !slices.Contains(got[m[1]], m[2]) {
					got[m[1]] = append(got[m[1]], m[2])
				}
			}
			for _, file := range []string{"planted.go", "planted_test.go"} {
				slices.Sort(want[file])
				slices.Sort(got[file])
				if !slices.Equal(want[file], got[file]) {
					t.Errorf("%s/%s: found %v, want %v\n%s", from, file, got[file], want[file], report)
				}
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
