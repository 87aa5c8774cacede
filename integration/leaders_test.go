package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// oneBatch is a record batch with one record, worth an object.
func oneBatch(value []byte) []byte { return batchOf(-1, -1, -1, false, value) }

// batchOf is a record batch of a producer.
func batchOf(producer int64, epoch int16, sequence int32, transactional bool, values ...[]byte) []byte {
	b := kmsg.NewRecordBatch()
	b.Magic, b.NumRecords, b.PartitionLeaderEpoch = 2, int32(len(values)), -1
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = producer, epoch, sequence
	b.FirstTimestamp, b.MaxTimestamp, b.LastOffsetDelta = baseTime, baseTime, int32(len(values)-1)
	if transactional {
		b.Attributes = 1 << 4
	}
	for i, value := range values {
		r := kmsg.NewRecord()
		r.Value, r.OffsetDelta = value, int32(i)
		r.Length = int32(len(r.AppendTo(nil)) - 1) // without its own length, one byte while it is 0
		b.Records = r.AppendTo(b.Records)
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// Who asks the wrong broker is told the right one (KIP-951): in every version
// that can tell, by the id of the tier that the topic is in and at sluice's
// address, on whichever listener it asked. The sniffer checks addresses and
// that the leader is among the nodes of the same answer.
func TestWrongBrokersNameTheLeader(t *testing.T) {
	p := shared(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, topic := range []string{"hints-control", "hints-telemetry"} {
		// Followers answer consumers, so there are none.
		adm := kadm.NewClient(client(t, p.sluice.Bootstrap))
		if _, err := adm.CreateTopic(ctx, 1, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
		tools{p, t}.await("the leader", func() bool {
			for _, b := range p.kafka.Bootstrap() { // every broker must know
				m, err := kadm.NewClient(client(t, b)).Metadata(ctx, topic)
				if err != nil {
					t.Fatal(err)
				}
				if len(m.Topics[topic].Partitions) == 0 || m.Topics[topic].Partitions[0].Leader < 0 {
					return false
				}
			}
			return true
		})
		m, err := adm.Metadata(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		id := m.Topics[topic].ID
		leader := m.Topics[topic].Partitions[0].Leader
		var wrong []int32
		for _, n := range m.Brokers.NodeIDs() {
			if n&^disklessBit != leader&^disklessBit {
				wrong = append(wrong, n)
			}
		}
		if len(wrong) != 4 {
			t.Fatalf("of the nodes %v, %v do not lead", m.Brokers.NodeIDs(), wrong)
		}
		telling := map[int16]int{0: 0, 1: 0} // versions that can name a leader, by key
		mostProduce, mostFetch := newest(t, bootstrapOf(p.kafka), 0), newest(t, bootstrapOf(p.kafka), 1)
		for _, v := range []struct{ produce, fetch int16 }{{9, 12}, {10, 13}, {11, 15}, {12, 16}, {13, 17}, {13, 18}} {
			v.produce, v.fetch = min(v.produce, mostProduce), min(v.fetch, mostFetch)
			if v.produce >= 10 {
				telling[0]++
			}
			if v.fetch >= 16 {
				telling[1]++
			}
			versions := kversion.Stable()
			versions.SetMaxKeyVersion(0, v.produce)
			versions.SetMaxKeyVersion(1, v.fetch)
			cl := client(t, p.sluice.Bootstrap, kgo.MaxVersions(versions))
			for _, n := range wrong {
				produce := kmsg.NewPtrProduceRequest()
				produce.Acks, produce.TimeoutMillis = -1, 10_000
				pt := kmsg.NewProduceRequestTopic()
				pt.Topic, pt.TopicID = topic, id
				pp := kmsg.NewProduceRequestTopicPartition()
				pp.Records = oneBatch(worthwhile)
				pt.Partitions = append(pt.Partitions, pp)
				produce.Topics = append(produce.Topics, pt)
				resp, err := cl.Broker(int(n)).Request(ctx, produce)
				if err != nil {
					t.Fatal(err)
				}
				presp := resp.(*kmsg.ProduceResponse)
				answer := presp.Topics[0].Partitions[0]
				if presp.Version != v.produce {
					t.Fatalf("asked by Produce v%d instead of v%d", presp.Version, v.produce)
				}
				want := leader
				if v.produce < 10 {
					want = -1 // earlier versions cannot tell
				}
				if answer.ErrorCode != notLeader || answer.CurrentLeader.LeaderID != want {
					t.Errorf("%s: Produce v%d to node %d is answered with error %d and leader %d, want %d and %d", topic, v.produce, n, answer.ErrorCode, answer.CurrentLeader.LeaderID, notLeader, want)
				}

				fetch := kmsg.NewPtrFetchRequest()
				fetch.ReplicaID, fetch.MaxWaitMillis, fetch.MaxBytes, fetch.SessionEpoch = -1, 100, 1<<20, -1
				fetch.ReplicaState.ID = -1
				ft := kmsg.NewFetchRequestTopic()
				ft.Topic, ft.TopicID = topic, id
				fp := kmsg.NewFetchRequestTopicPartition()
				fp.PartitionMaxBytes, fp.CurrentLeaderEpoch = 1<<20, -1
				ft.Partitions = append(ft.Partitions, fp)
				fetch.Topics = append(fetch.Topics, ft)
				if resp, err = cl.Broker(int(n)).Request(ctx, fetch); err != nil {
					t.Fatal(err)
				}
				fresp := resp.(*kmsg.FetchResponse)
				fetched := fresp.Topics[0].Partitions[0]
				if fresp.Version != v.fetch {
					t.Fatalf("asked by Fetch v%d instead of v%d", fresp.Version, v.fetch)
				}
				want = leader
				if v.fetch < 16 {
					want = -1
				}
				if fetched.ErrorCode != notLeader || fetched.CurrentLeader.LeaderID != want {
					t.Errorf("%s: Fetch v%d from node %d is answered with error %d and leader %d, want %d and %d", topic, v.fetch, n, fetched.ErrorCode, fetched.CurrentLeader.LeaderID, notLeader, want)
				}
			}
		}
		for key, versions := range telling { // from each wrong node
			if got := p.sniffer.hinted(key, topic); got != versions*len(wrong) {
				t.Errorf("%s: %d leaders were named in answers of %s, want %d", topic, got, kmsg.NameForKey(key), versions*len(wrong))
			}
		}
	}
}

const notLeader = 6

// Leaders change under clients that look at Metadata every five minutes: they
// follow what Produce and Fetch tell them, and no record is lost, doubled or
// out of order.
func TestClientsFollowLeaders(t *testing.T) {
	p := shared(t)
	x := tools{p, t}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	topics := []string{"leaders-control", "leaders-telemetry"}
	for _, topic := range topics {
		createTopic(t, p.sluice.Bootstrap, topic, 1)
	}
	stale := []kgo.Opt{kgo.MetadataMaxAge(5 * time.Minute), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())}
	producer := client(t, p.sluice.Bootstrap, stale...)
	reader := client(t, p.sluice.Bootstrap, append(stale, kgo.ConsumeTopics(topics...))...)
	value := worthwhile

	stop := make(chan struct{})
	var producing sync.WaitGroup
	var mu sync.Mutex
	acked := make(map[string]int)
	for _, topic := range topics {
		producing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				r := &kgo.Record{Topic: topic, Key: []byte(strconv.Itoa(i)), Value: value}
				if err := producer.ProduceSync(ctx, r).FirstErr(); err != nil {
					t.Errorf("%s: %v", topic, err)
					return
				}
				mu.Lock()
				acked[topic]++
				mu.Unlock()
			}
		})
	}
	read := make(map[string]int)
	poll := func() {
		fetches := reader.PollFetches(ctx)
		fetches.EachError(func(topic string, _ int32, err error) { t.Errorf("reading %s: %v", topic, err) })
		fetches.EachRecord(func(r *kgo.Record) {
			if want := strconv.Itoa(read[r.Topic]); string(r.Key) != want || string(r.Value) != string(value) {
				t.Errorf("%s offset %d: record %s of %d bytes, want record %s", r.Topic, r.Offset, r.Key, len(r.Value), want)
			}
			read[r.Topic]++
		})
	}
	// Java's producer is held while leaders change: what it sends next goes to
	// the old ones.
	javaTopics := []string{topics[0] + "-java", topics[1] + "-java"}
	const half = 50
	changed := filepath.Join(t.TempDir(), "changed")
	var lines strings.Builder
	for n := range 2 {
		for i := range half {
			for _, topic := range javaTopics {
				fmt.Fprintf(&lines, "%s 0 _ %s %s\n", topic, javaText([]byte(strconv.Itoa(n*half+i))), javaText(value))
			}
		}
		if n == 0 {
			fmt.Fprintf(&lines, "flush\nuntil %s\n", changed)
		}
	}
	for _, topic := range javaTopics {
		createTopic(t, p.sluice.Bootstrap, topic, 1)
	}
	var java sync.WaitGroup
	java.Go(func() {
		if r := p.jvm.TryJava(lines.String(), "Client", "produce", p.sluice.Bootstrap, "metadata.max.age.ms=300000"); r.Err != nil {
			t.Errorf("%v\n%s", r.Err, r.Stderr)
		}
	})
	release := func() error { return os.WriteFile(changed, nil, 0o644) }
	defer java.Wait()
	defer func() { _ = release() }()
	x.await("the first half of what Java sends", func() bool {
		ends, err := kadm.NewClient(producer).ListEndOffsets(ctx, javaTopics...)
		return err == nil && ends[javaTopics[0]][0].Offset == half && ends[javaTopics[1]][0].Offset == half
	})

	// Each topic's leadership goes round.
	for range 2 {
		for _, topic := range slices.Concat(topics, javaTopics) {
			replicas := x.partition(topic, 0).Replicas
			next := append(slices.Clone(replicas[1:]), replicas[0])
			x.lead(ctx, topic, next)
		}
		// and clients go on with the new ones
		mu.Lock()
		goal := map[string]int{topics[0]: acked[topics[0]] + 5, topics[1]: acked[topics[1]] + 5}
		mu.Unlock()
		for (read[topics[0]] < goal[topics[0]] || read[topics[1]] < goal[topics[1]]) && !t.Failed() {
			poll()
		}
	}
	close(stop)
	producing.Wait()
	if err := release(); err != nil {
		t.Fatal(err)
	}
	java.Wait()
	for (read[topics[0]] < acked[topics[0]] || read[topics[1]] < acked[topics[1]]) && !t.Failed() {
		poll()
	}
	for _, topic := range topics {
		if p.sniffer.hinted(0, topic) == 0 {
			t.Errorf("no Produce answer named a new leader of %s", topic)
		}
		if p.sniffer.hinted(1, topic) == 0 {
			t.Errorf("no Fetch answer named a new leader of %s", topic)
		}
	}
	for _, topic := range javaTopics {
		if p.sniffer.hinted(0, topic) == 0 {
			t.Errorf("Java's producer was told no new leader of %s", topic)
		}
		for i, r := range consumed(t, p.sluice.Bootstrap, 2*half, nil, topic) {
			if string(r.Key) != strconv.Itoa(i) || string(r.Value) != string(value) {
				t.Fatalf("%s offset %d: record %s of %d bytes", topic, r.Offset, r.Key, len(r.Value))
			}
		}
	}
}

// lead reorders a partition's replicas, behind sluice's back, and makes the
// first the leader.
func (x tools) lead(ctx context.Context, topic string, replicas []int32) {
	x.t.Helper()
	adm := kadm.NewClient(client(x.t, bootstrapOf(x.kafka)))
	var req kadm.AlterPartitionAssignmentsReq
	req.Assign(topic, 0, replicas)
	if r, err := adm.AlterPartitionAssignments(ctx, req); err != nil || r.Error() != nil {
		x.t.Fatal(err, r.Error())
	}
	x.await("the order of replicas", func() bool { return slices.Equal(x.partition(topic, 0).Replicas, replicas) })
	x.await("the new leader of "+topic, func() bool {
		var set kadm.TopicsSet
		set.Add(topic, 0)
		if _, err := adm.ElectLeaders(ctx, kadm.ElectPreferredReplica, set); err != nil {
			x.t.Fatal(err)
		}
		return x.partition(topic, 0).Leader == replicas[0]
	})
}
