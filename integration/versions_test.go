package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/harness"
)

// olderKafka are releases that everything but share and streams groups, which
// they don't have, is run with anew.
var olderKafka = []string{"3.9.2"}

// onOlderKafka are the tests that say what clients may rely on, and may turn out
// otherwise with other brokers: not those of sluice's own death, and not those of
// older Java clients, which speak to these brokers in the versions in which they
// speak to today's. In the second process are those that start brokers of their
// own, and wait for them.
var onOlderKafka = [][]string{{
	"TestEveryClientReadsWhatEveryClientWrote", "TestTopicSettingsThatChangeBatches", "TestClientsOfOlderReleases",
	"TestGroupsResume", "TestGroupMembersShareBothTiers", "TestStaticMembers",
	"TestOneTransactionOverBothTiers", "TestOpenTransactionIsNotRead", "TestOffsetsInATransaction", "TestLateBatchesAreJudgedAsAnyOther",
	"TestFetchesAreAnsweredAsDirect", "TestARecreatedTopicIsAnother", "TestLeaderEpochsAreTheBrokers", "TestFollowersAreReadFrom",
	"TestOffsetsByTimestamp", "TestCompactedTopicsStayInline", "TestByteRatesMeanOriginalBytes",
	"TestWrongBrokersNameTheLeader", "TestClientsFollowLeaders",
	"TestJavaToolsBehaveAsDirect", "TestJavaToolsSeeTheCluster", "TestLongGroupTools", "TestLongToolsThatWriteAndRead",
}, {
	"TestAcknowledgedOnceInOrderThroughKills", "TestClientsAreThemselves", "TestLongToolsOfUsers",
}}

// Brokers of an older release, and its tools, keep every promise that those of
// today keep: the same tests, in processes of their own.
func TestLongBrokersOfOlderReleases(t *testing.T) {
	harness.Long(t)
	for _, version := range olderKafka {
		for i, tests := range onOlderKafka {
			t.Run(fmt.Sprintf("%s-%d", version, i+1), func(t *testing.T) {
				t.Parallel()
				// As in tools/test.sh: brokers have timing of their own, and what fails is
				// run once more, and named.
				missing, out, err := onKafka(t, version, tests)
				if n := len(missing); n > 0 && n <= 3 {
					t.Logf("run again: %v\n%s", missing, out)
					missing, out, err = onKafka(t, version, missing)
				}
				if err != nil || len(missing) > 0 {
					t.Errorf("%v do not pass: %v\n%s", missing, err, out)
				}
			})
		}
	}
}

// onKafka runs tests with brokers of a release, in a process of their own, and
// returns those that don't pass, with what it printed.
func onKafka(t *testing.T, version string, tests []string) (missing []string, printed string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run=^("+strings.Join(tests, "|")+")$")
	cmd.Env = harness.OnKafka(version)
	out, err := cmd.CombinedOutput()
	passed := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^--- PASS: (\w+) `).FindAllSubmatch(out, -1) {
		passed[string(m[1])] = true
	}
	for _, name := range tests {
		if !passed[name] {
			missing = append(missing, name)
		}
	}
	if !bytes.Contains(out, []byte("Kafka "+version+", ")) {
		err = errors.Join(err, fmt.Errorf("no brokers of %s were started", version))
	}
	return missing, string(out), err
}

// Clients that speak the protocol of their time read and write as ever, in both
// tiers. Brokers since 4.0 take what clients sent since 0.11 (KIP-896).
func TestClientsOfOlderReleases(t *testing.T) {
	clientsReadEachOther(t, "older", []clientLibrary{
		franz{},
		franz{kversion.V0_11_0()}, franz{kversion.V2_0_0()}, franz{kversion.V2_8_0()},
		saramaClient{sarama.V0_11_0_0}, saramaClient{sarama.V1_0_0_0}, saramaClient{sarama.V2_1_0_0},
	}, []string{"lz4"}, false)
}

// The same with Java's own clients, and with all that they did then: groups and
// transactions.
func TestLongJavaClientsOfOlderReleases(t *testing.T) {
	harness.Long(t)
	p := shared(t)
	libs := []clientLibrary{franz{}, javaClient{p.jvm, "Java"}}
	var members []namedMember
	for _, version := range []string{"2.1.1", "2.8.2", "3.3.2"} {
		jvm := harness.StartJavaClients(t, version)
		name := "java-" + version
		libs = append(libs, javaClient{jvm, name})
		members = append(members, namedMember{name, javaMember(jvm, "classic")})
		for _, pr := range pairs(t, p, "tx-"+name) {
			t.Run("transactions/"+name+"/"+pr.name, func(t *testing.T) {
				oneTransaction(t, jvm, p.sluice, pr, javaClient{jvm, name}.transact)
			})
		}
	}
	for _, v := range []*kversion.Versions{kversion.V0_11_0(), kversion.V2_0_0(), kversion.V2_8_0()} {
		name := strings.NewReplacer(" ", "-", ".", "-").Replace(v.VersionGuess())
		members = append(members, namedMember{"franz-" + name, franzMember(kgo.MaxVersions(v))})
	}
	clientsReadEachOther(t, "older-java", libs, []string{"none", "gzip", "snappy", "lz4", "zstd"}, true)
	groupsResume(t, "older-groups", members)
}
