package server

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sluice-kafka/sluice/config"
)

const onlyApproved = "GODEBUG=fips140=only"

// A whole replica runs, in both tiers, where Go refuses what FIPS 140-3 does not
// approve. It is said when a process starts, so it takes another one.
func TestWithNothingButApprovedCryptography(t *testing.T) {
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.count=1", "-test.v", "-test.run=^(TestBothTiersThroughOneAddress|TestAShortPassword)$")
	again.Env = append(os.Environ(), onlyApproved)
	out, err := again.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 2 {
		t.Errorf("with %s: %v\n%s", onlyApproved, err, out)
	}
}

func TestAShortPassword(t *testing.T) {
	for _, tt := range []struct {
		sasl config.SASL
		fine bool
	}{
		{config.SASL{Mechanism: "SCRAM-SHA-256", Username: "sluice", Password: "short"}, !fips140.Enforced()},
		{config.SASL{Mechanism: "SCRAM-SHA-256", Username: "sluice", Password: "long enough, 14"}, true},
		{config.SASL{Mechanism: "PLAIN", Username: "sluice", Password: "short"}, true},
	} {
		if _, err := mechanism(tt.sasl); (err == nil) != tt.fine {
			t.Errorf("%+v: %v", tt.sasl, err)
		}
	}
}
