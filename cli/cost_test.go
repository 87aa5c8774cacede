package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestCost(t *testing.T) {
	code, out, errs := sluice(t, "cost", "--throughput", "100MiB", "--retention", "1d", "--assume", "catch_up=0%")
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	// By hand in package cost.
	for _, want := range []string{
		`(?m)^a month costs +Kafka  \+ follower fetch  \+ tiered storage +sluice$`,
		`(?m)^disks +\$3,380 +\$3,380 `,
		`(?m)^between zones: brokers to consumers +\$10,125 +- +- `,
		`(?m)^all +\$27,710 +\$17,585 `,
		`(?m)^  zones +3 +availability zones`,
		`(?m)^  catch_up +0% `,
		`prices of AWS .* as of \d{4}-\d\d-\d\d`,
		`90 % of the bytes go to objects`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	code, out, _ = sluice(t, "cost", "--batch-size", "200B", "--record-size", "10B")
	if code != 0 || !strings.Contains(out, "No payload goes to objects") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestCostAsJSON(t *testing.T) {
	code, out, errs := sluice(t, "cost", "--retention", "1d", "--json")
	var r costReport
	if err := json.Unmarshal([]byte(out), &r); code != 0 || errs != "" || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, errs)
	}
	if len(r.Setups) != 4 || r.Setups[0].Setup != "kafka" || r.Setups[3].Setup != "sluice" || r.Assumptions["retention"] != "1d" || r.Prices.BrokerHour == 0 || r.Mix["telemetry"] != 0.9 {
		t.Errorf("%+v", r)
	}
	for _, s := range r.Setups {
		sum := 0.0
		for _, l := range s.Lines {
			sum += l.Month
		}
		if diff := sum - s.Month; diff > 1e-6 || diff < -1e-6 || s.Month/s.PerTiB-r.TiBPerMonth > 1e-6 {
			t.Errorf("%s: lines add up to %f, not to %f", s.Setup, sum, s.Month)
		}
	}
}

// What is printed can be changed and given back.
func TestCostFromFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, assumptions, _ := sluice(t, "cost", "--print-assumptions")
	_, prices, _ := sluice(t, "cost", "--print-prices")
	_, plain, _ := sluice(t, "cost")
	code, same, errs := sluice(t, "cost", "--assumptions", file("a.yaml", assumptions), "--prices", file("p.yaml", prices))
	if code != 0 || same != plain {
		t.Fatalf("exit code %d: %s\n%s", code, errs, same)
	}
	// A flag goes before --assume, and that before the file.
	changed := file("b.yaml", strings.NewReplacer("zones: 3 ", "zones: 4 ", "fan_out: 3 ", "fan_out: 4 ", "replication: 3 ", "replication: 2 ").Replace(assumptions))
	code, out, errs := sluice(t, "cost", "--assumptions", changed, "--assume", "fan_out=5", "--assume", "zones=5", "--zones", "6",
		"--prices", file("q.yaml", strings.Replace(prices, `currency: "$"`, `currency: "€"`, 1)))
	if code != 0 || !regexp.MustCompile(`(?m)^  zones +6 `).MatchString(out) || !regexp.MustCompile(`(?m)^  fan_out +5 `).MatchString(out) ||
		!regexp.MustCompile(`(?m)^  replication +2 `).MatchString(out) || !strings.Contains(out, "€") {
		t.Errorf("exit code %d: %s\n%s", code, errs, out)
	}
	// Classes of a configuration.
	s := settings{kafka: []string{"127.0.0.1:1"}, rest: rulesOnly + "classes:\n  bulk: { tier: diskless, linger: 5s }\n"}
	code, out, errs = sluice(t, "cost", "-c", s.file(t), "--mix", "bulk=100%")
	if code != 0 || !strings.Contains(out, "100 % of the bytes go to objects") {
		t.Errorf("exit code %d: %s\n%s", code, errs, out)
	}

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--zones", "many"}, `--zones: zones takes a whole number, not "many"`},
		{[]string{"--mix", "telemetry"}, `"telemetry" is no mix`},
		{[]string{"--mix", "bulk=100%"}, `there is no class "bulk"`},
		{[]string{"--assume", "zoned=1"}, "--print-assumptions` lists them"},
		{[]string{"--assumptions", filepath.Join(dir, "none")}, "no such file"},
		{[]string{"--assumptions", file("bad.yaml", "\nzones: 0")}, "bad.yaml:2: zones has to be at least 1"},
		{[]string{"--prices", file("few.yaml", "as_of: 2026-01-01")}, "missing; `sluice cost --print-prices`"},
		{[]string{"--throughput", "1TiB"}, "reckon with larger ones"},
		{[]string{"--json", "--print-prices"}, "[json print-assumptions print-prices]"},
		{[]string{"please"}, `not "please"`},
	} {
		code, out, errs := sluice(t, append([]string{"cost"}, tt.args...)...)
		if code != 1 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit code %d, %s\n%s", tt.args, code, errs, out)
		}
	}
}
