package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/harness"
)

// olderKafka are releases that everything but share and streams groups, which
// they don't have, is run with anew.
var olderKafka = []string{"3.9.2"}

// onOlderKafka are the tests that say what clients may rely on. Kafka's tools are
// compared with those of today's brokers only: the tests know what these print.
var onOlderKafka = []string{
	"TestWeakAcks", "TestEveryClientReadsWhatEveryClientWrote", "TestTopicSettingsThatChangeBatches",
	"TestClientsOfOlderReleases", "TestLongJavaClientsOfOlderReleases",
	"TestGroupsResume", "TestGroupMembersShareBothTiers", "TestStaticMembers",
	"TestOneTransactionOverBothTiers", "TestOpenTransactionIsNotRead", "TestOffsetsInATransaction", "TestLateBatchesAreJudgedAsAnyOther",
	"TestFetchesAreAnsweredAsDirect", "TestARecreatedTopicIsAnother", "TestLeaderEpochsAreTheBrokers", "TestFollowersAreReadFrom",
	"TestOffsetsByTimestamp", "TestCompactedTopicsStayInline", "TestByteRatesMeanOriginalBytes",
	"TestWrongBrokersNameTheLeader", "TestClientsFollowLeaders", "TestAcknowledgedOnceInOrderThroughKills", "TestClientsAreThemselves",
}

// Brokers of an older release keep every promise that those of today keep: the
// same tests, in a process of their own.
func TestLongBrokersOfOlderReleases(t *testing.T) {
	harness.Long(t)
	for _, version := range olderKafka {
		t.Run(version, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if deadline, ok := t.Deadline(); ok {
				ctx, cancel = context.WithDeadline(ctx, deadline)
				defer cancel()
			}
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.timeout=20m", "-test.run=^("+strings.Join(onOlderKafka, "|")+")$")
			cmd.Env = harness.OnKafka(version)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			passed := make(map[string]bool)
			for _, m := range regexp.MustCompile(`(?m)^--- PASS: (\w+) `).FindAllStringSubmatch(out.String(), -1) {
				passed[m[1]] = true
			}
			for _, name := range onOlderKafka {
				if !passed[name] {
					t.Errorf("%s does not pass", name)
				}
			}
			if !strings.Contains(out.String(), "Kafka "+version+", ") {
				t.Errorf("no brokers of %s were started", version)
			}
			if err != nil || t.Failed() {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
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
