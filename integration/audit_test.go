package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/cli"
	"github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/harness/history"
)

// lockingStore is a store in a bucket with object lock, of its own.
func lockingStore(t *testing.T, s *harness.S3, bucket string) string {
	s.NewLockingBucket(t, bucket)
	return fmt.Sprintf("{ url: %q, endpoint: %q, access_key: %q, secret_key: %q, lock: compliance, lock_retention: 24h }", "s3://"+bucket, s.Endpoint, s.AccessKey, s.SecretKey)
}

// sluiceCommand runs a command line as a user does.
func sluiceCommand(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = cli.Run(t.Context(), args, &o, &e)
	return code, o.String(), e.String()
}

type verification struct {
	Sound    bool            `json:"sound"`
	Chains   []*audit.Report `json:"chains"`
	Missing  []string        `json:"missing"`
	Compared int             `json:"compared_batches"`
	Kafka    []audit.Finding `json:"kafka"`
}

func verifyArchive(t *testing.T, args ...string) (v verification, code int) {
	t.Helper()
	code, out, errs := sluiceCommand(t, append([]string{"audit", "verify", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%d: %v\n%s\n%s", code, err, out, errs)
	}
	return v, code
}

// wantArchived archives what is left, and checks that the archive holds all of
// the topics' logs, batch by batch.
func wantArchived(t *testing.T, file, direct string, topics ...string) verification {
	t.Helper()
	if code, out, errs := sluiceCommand(t, append([]string{"audit", "archive", "--once", "-c", file}, topics...)...); code != 0 {
		t.Fatalf("archive: %d\n%s\n%s", code, out, errs)
	}
	v, code := verifyArchive(t, append([]string{"-c", file, "--kafka"}, topics...)...)
	if code != 0 || !v.Sound {
		t.Fatalf("verify: %d\n%s", code, pretty(v))
	}
	ends, err := kadm.NewClient(client(t, direct)).ListEndOffsets(t.Context(), topics...)
	if err != nil {
		t.Fatal(err)
	}
	chains, batches := 0, 0
	for _, r := range v.Chains {
		chains++
		batches += int(r.Batches)
		end, _ := ends.Lookup(r.Topic, r.Partition)
		if r.First != 0 || len(r.Gaps) > 0 || r.Head.Next != end.Offset || r.Locked.Before(time.Now().Add(23*time.Hour)) {
			t.Errorf("%s-%d ends at %d: %s", r.Topic, r.Partition, end.Offset, pretty(r))
		}
	}
	if batches == 0 || v.Compared != batches {
		t.Errorf("%d batches are archived in %d chains, %d were compared with Kafka", batches, chains, v.Compared)
	}
	return v
}

func pretty(v any) string {
	b, _ := json.MarshalIndent(v, "", "  ")
	return string(b)
}

// All kinds of batches of an audit topic are archived under lock; nothing of that
// can be removed, what is done all the same is found, and an export is proved
// without any of it.
func TestAuditArchive(t *testing.T) {
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	const topic, bucket = "ledger", "ledger"
	s := startSluice(t, replica{
		Kafka: k.Bootstrap(), Store: lockingStore(t, s3, bucket), Default: "audit",
		Extra: "classes:\n  audit: { linger: 20ms, on_delete: refuse }\naudit: { every: 1s }\n",
	})
	if _, out, _ := sluiceCommand(t, "check", "--live", "-c", s.File); !strings.Contains(out, "ok    store default (s3://ledger): object lock (compliance, 24h0m0s)") {
		t.Errorf("check does not say that the bucket locks:\n%s", out)
	}
	config, err := os.ReadFile(s.File)
	if err != nil {
		t.Fatal(err)
	}
	open := strings.Replace(string(config), "s3://ledger", "s3://"+s3.Bucket, 1)
	unlocked := filepath.Join(t.TempDir(), "unlocked.yaml")
	if err := os.WriteFile(unlocked, []byte(open), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := sluiceCommand(t, "check", "--live", "-c", unlocked); code != 1 || !strings.Contains(out, "there is no object lock") {
		t.Errorf("check takes a bucket that cannot lock: %d\n%s", code, out)
	}
	createTopic(t, s.Bootstrap, topic, 2)
	produce := func(cl *kgo.Client, size, n int) {
		t.Helper()
		var all []*kgo.Record
		for i := range n {
			all = append(all, &kgo.Record{Topic: topic, Partition: int32(i % 2), Key: fmt.Append(nil, i), Value: bytes.Repeat([]byte{'v'}, size)})
		}
		if err := cl.ProduceSync(t.Context(), all...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce(client(t, s.Bootstrap, kgo.RecordPartitioner(kgo.ManualPartitioner())), 1000, 100)
	produce(client(t, s.Bootstrap, kgo.RecordPartitioner(kgo.ManualPartitioner())), 10, 2) // inline: too small
	txn := client(t, s.Bootstrap, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID("ledger"))
	for _, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		produce(txn, 1000, 20)
		if err := txn.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	if s.metric(t, "sluice_diskless_stored_batches_total", "class", "audit") == 0 || s.metric(t, "sluice_diskless_inline_batches_total", "reason", "small") == 0 {
		t.Error("the batches are not of both kinds")
	}
	eventually(t, "the replica archives", func() (bool, string) {
		return s.metric(t, "sluice_audit_objects_total") > 0, "no object yet"
	})
	v := wantArchived(t, s.File, bootstrapOf(k), topic)

	heads := filepath.Join(t.TempDir(), "heads.json")
	_, out, _ := sluiceCommand(t, "audit", "verify", "-c", s.File, "--json")
	if err := os.WriteFile(heads, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, code := verifyArchive(t, "-c", s.File, "--expect", heads, "--expect-head", v.Chains[0].Head.SHA256); code != 0 {
		t.Errorf("the ends as they are are not found: %s", pretty(v))
	}
	if v, code := verifyArchive(t, "-c", s.File, "--expect-head", strings.Repeat("0f", 32)); code != 1 || len(v.Missing) != 1 {
		t.Errorf("an end that never was is not missed: %s", pretty(v))
	}

	// Nobody deletes the records, by Kafka's requests through sluice or by S3's.
	adm := kadm.NewClient(client(t, s.Bootstrap))
	deleted, err := adm.DeleteTopics(t.Context(), topic)
	if err == nil {
		err = deleted[topic].Err
	}
	if !errors.Is(err, kerr.PolicyViolation) {
		t.Errorf("deleting the topic: %v", err)
	}
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, 1, -1)
	cut, err := adm.DeleteRecords(t.Context(), offsets)
	if err == nil {
		err = cut.Error()
	}
	if !errors.Is(err, kerr.PolicyViolation) {
		t.Errorf("deleting records: %v", err)
	}
	raw := s3.Client(t)
	locked := 0
	for o := range raw.ListObjects(t.Context(), bucket, minio.ListObjectsOptions{Prefix: "audit/", Recursive: true, WithVersions: true}) {
		locked++
		if err := raw.RemoveObject(t.Context(), bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID, GovernanceBypass: true}); err == nil {
			t.Errorf("%s was removed", o.Key)
		}
	}
	if locked < 4 {
		t.Errorf("%d objects are locked", locked)
	}

	dir := filepath.Join(t.TempDir(), "export")
	if code, out, errs := sluiceCommand(t, "audit", "export", "-c", s.File, topic, "-o", dir); code != 0 {
		t.Fatalf("export: %d\n%s\n%s", code, out, errs)
	}
	if v, code := verifyArchive(t, "--export", dir); code != 0 {
		t.Errorf("the export: %s", pretty(v))
	}
	files, _ := filepath.Glob(filepath.Join(dir, "records-*"))
	outcomes := map[audit.Outcome]int{}
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(body) {
			var r audit.Record
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatal(err)
			}
			outcomes[r.Transaction]++
		}
	}
	if outcomes[""] != 102 || outcomes[audit.Committed] != 20 || outcomes[audit.Aborted] != 20 || outcomes[audit.Open] != 0 {
		t.Errorf("exported %v", outcomes)
	}

	// What S3 lets somebody do all the same.
	chain := v.Chains[0]
	key := fmt.Sprintf("%s%s/%d/%012d", audit.Prefix, chain.TopicID, chain.Partition, chain.Head.Number)
	if err := raw.RemoveObject(t.Context(), bucket, key, minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	v, code := verifyArchive(t, "-c", s.File)
	if code != 1 || !slices.ContainsFunc(v.Chains, func(r *audit.Report) bool {
		return slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Object == key && strings.Contains(f.Problem, "hidden") })
	}) {
		t.Errorf("a hidden end is not found: %d, %s", code, pretty(v))
	}
}

// A long life of the archive: replicas that are killed while they archive, and an
// outage of the store, in which batches go inline. At the end it holds all.
func TestLongAuditThroughKillsAndAnOutage(t *testing.T) {
	harness.Long(t)
	k := sharedKafka(t)
	s3 := harness.StartS3(t)
	topics := []string{"journal-1", "journal-2"}
	r := replica{
		Kafka: k.Bootstrap(), Store: lockingStore(t, s3, "journal"), Default: "audit",
		Extra: "classes:\n  audit: { linger: 20ms, object_size: 1MiB }\naudit: { every: 1s, object_size: 1MiB }\nlimits: { put_timeout: 1s }\n",
	}.withDefaults(t)
	s := serve(t, r)
	for _, topic := range topics {
		createTopic(t, r.bootstrap(), topic, 3)
	}
	h := history.New()
	l := startLoad(t, h, workload{Bootstrap: r.bootstrap(), Topics: topics})
	l.awaitMore(200, topics...)
	objects := func() float64 { return scrape(t, s.Admin, "sluice_audit_objects_total") }
	for range 5 {
		before := objects()
		eventually(t, "the replica archives", func() (bool, string) { return objects() > before, "no new object" })
		s.Kill()
		s = serveFile(t, s.File, s.Admin)
		l.awaitMore(200, topics...)
	}
	s3.Stop()
	eventually(t, "batches go inline", func() (bool, string) {
		return scrape(t, s.Admin, "sluice_diskless_store_healthy") == 0, "the store counts as healthy"
	})
	l.awaitMore(200, topics...)
	s3.Start(t)
	l.awaitMore(200, topics...)
	eventually(t, "the store is used again", func() (bool, string) {
		return scrape(t, s.Admin, "sluice_diskless_store_healthy") == 1, "it is not"
	})
	l.awaitMore(200, topics...)
	l.stop()
	// The command races the replica for the last objects.
	wantArchived(t, s.File, bootstrapOf(k), topics...)
	readAll(t, h, "afterwards", r.bootstrap(), bootstrapOf(k), topics...)
	if scrape(t, s.Admin, "sluice_diskless_inline_batches_total") == 0 {
		t.Error("nothing went inline in the outage")
	}

	// With all of the log gone, the archive still has it, and says what it missed.
	adm := kadm.NewClient(client(t, bootstrapOf(k)))
	ends, err := adm.ListEndOffsets(context.Background(), topics[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := adm.DeleteRecords(context.Background(), ends.Offsets()); err != nil {
		t.Fatal(err)
	}
	v, code := verifyArchive(t, "-c", s.File, "--kafka", topics[0])
	if code != 0 || v.Compared != 0 {
		t.Errorf("%d: %s", code, pretty(v))
	}
}
