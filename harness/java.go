package harness

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// javaTools are the main classes behind Kafka's scripts.
var javaTools = map[string]string{
	"kafka-acls":                "org.apache.kafka.tools.AclCommand",
	"kafka-cluster":             "org.apache.kafka.tools.ClusterTool",
	"kafka-broker-api-versions": "org.apache.kafka.tools.BrokerApiVersionsCommand",
	"kafka-client-metrics":      "org.apache.kafka.tools.ClientMetricsCommand",
	"kafka-configs":             "kafka.admin.ConfigCommand",
	"kafka-console-consumer":    "org.apache.kafka.tools.consumer.ConsoleConsumer",
	"kafka-console-producer":    "org.apache.kafka.tools.ConsoleProducer",
	"kafka-consumer-groups":     "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
	"kafka-consumer-perf-test":  "org.apache.kafka.tools.ConsumerPerformance",
	"kafka-delegation-tokens":   "org.apache.kafka.tools.DelegationTokenCommand",
	"kafka-delete-records":      "org.apache.kafka.tools.DeleteRecordsCommand",
	"kafka-features":            "org.apache.kafka.tools.FeatureCommand",
	"kafka-get-offsets":         "org.apache.kafka.tools.GetOffsetShell",
	"kafka-leader-election":     "org.apache.kafka.tools.LeaderElectionCommand",
	"kafka-log-dirs":            "org.apache.kafka.tools.LogDirsCommand",
	"kafka-metadata-quorum":     "org.apache.kafka.tools.MetadataQuorumCommand",
	"kafka-producer-perf-test":  "org.apache.kafka.tools.ProducerPerformance",
	"kafka-reassign-partitions": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
	"kafka-share-groups":        "org.apache.kafka.tools.consumer.group.ShareGroupCommand",
	"kafka-topics":              "org.apache.kafka.tools.TopicCommand",
	"kafka-transactions":        "org.apache.kafka.tools.TransactionsCommand",
	"kafka-verifiable-producer": "org.apache.kafka.tools.VerifiableProducer",
	"kafka-verifiable-consumer": "org.apache.kafka.tools.VerifiableConsumer",
}

// javaToolsBefore4 are those that were elsewhere then.
var javaToolsBefore4 = map[string]string{
	"kafka-acls":                "kafka.admin.AclCommand",
	"kafka-broker-api-versions": "kafka.admin.BrokerApiVersionsCommand",
	"kafka-console-producer":    "kafka.tools.ConsoleProducer",
}

func toolClass(t testing.TB, tool string, before4 bool) string {
	t.Helper()
	if class, ok := javaToolsBefore4[tool]; ok && before4 {
		return class
	}
	class, ok := javaTools[tool]
	if !ok {
		t.Fatalf("harness: no tool %s", tool)
	}
	return class
}

// javaTimeout bounds one tool.
const javaTimeout = 2 * time.Minute

// JavaResult is what a program printed.
type JavaResult struct {
	Stdout, Stderr string
	Err            error
}

// Tool runs one of Kafka's own tools, by its script's name, with in as its
// standard input. The test fails when the tool does.
func (k *Kafka) Tool(t testing.TB, in, tool string, args ...string) string {
	t.Helper()
	r := k.TryTool(t, in, tool, args...)
	if r.Err != nil {
		t.Fatalf("%s %s: %v\n%s\n%s", tool, strings.Join(args, " "), r.Err, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TryTool is Tool for one that may fail.
func (k *Kafka) TryTool(t testing.TB, in, tool string, args ...string) JavaResult {
	t.Helper()
	return k.java(in, append([]string{toolClass(t, tool, k.before4())}, args...)...)
}

// Java runs a single-file program from harness/java, with in as its standard
// input.
func (k *Kafka) Java(t testing.TB, in, file string, args ...string) JavaResult {
	t.Helper()
	return k.java(in, append([]string{filepath.Join(root(), "harness", "java", file)}, args...)...)
}

func (k *Kafka) java(in string, args ...string) JavaResult {
	ctx, cancel := context.WithTimeout(context.Background(), javaTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "java", append(jvm(k.cp, k.nodes[k.opt.Nodes[0]].log4j(), "-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"), args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end in %v: %w", javaTimeout, err)
	}
	return JavaResult{stdout.String(), stderr.String(), err}
}
