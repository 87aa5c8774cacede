package integration

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// reader asks one broker for records, request by request, in one version.
type reader struct {
	t       *testing.T
	cl      *kgo.Client
	place   place
	session int32
	ids     map[int64]int // of producers, in the order of their coming
}

// part is what a request says of a partition.
type part struct {
	partition, maxBytes, currentEpoch, fetchedEpoch int32
	offset                                          int64
}

func from(partition int32, offset int64) part {
	return part{partition: partition, offset: offset, maxBytes: 1 << 20, currentEpoch: -1, fetchedEpoch: -1}
}

// ask builds a Fetch without a session; with may change it.
func (r *reader) ask(parts []part, with func(*kmsg.FetchRequest)) string {
	r.t.Helper()
	req := fetching(r.place)
	req.MaxWaitMillis = 5
	req.Topics[0].Partitions = nil
	for _, p := range parts {
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.Partition, fp.FetchOffset, fp.PartitionMaxBytes = p.partition, p.offset, p.maxBytes
		fp.CurrentLeaderEpoch, fp.LastFetchedEpoch, fp.LogStartOffset = p.currentEpoch, p.fetchedEpoch, -1
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, fp)
	}
	if len(parts) == 0 {
		req.Topics = nil
	}
	if with != nil {
		with(req)
	}
	resp, err := r.cl.Broker(int(r.place.node)).Request(r.t.Context(), req)
	if err != nil {
		return err.Error()
	}
	got := resp.(*kmsg.FetchResponse)
	if got.SessionID != 0 {
		r.session = got.SessionID
	}
	return r.words(got)
}

// within asks in the reader's session.
func (r *reader) within(epoch int32, parts ...part) string {
	r.t.Helper()
	return r.ask(parts, func(req *kmsg.FetchRequest) {
		req.SessionID, req.SessionEpoch = r.session, epoch
		if epoch == 0 {
			req.SessionID = 0
		}
	})
}

// words say all that a client sees of an answer: what differs between places
// by its nature has been made common.
func (r *reader) words(resp *kmsg.FetchResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, session %t\n", name(resp.ErrorCode), resp.SessionID != 0)
	for _, t := range resp.Topics {
		topic := "another topic"
		if t.Topic == r.place.topic || t.TopicID == r.place.id {
			topic = "topic"
		}
		slices.SortFunc(t.Partitions, func(a, b kmsg.FetchResponseTopicPartition) int { return int(a.Partition - b.Partition) })
		for _, p := range t.Partitions {
			fmt.Fprintf(&b, "%s %d: %s, high watermark %d, stable %d, start %d, diverging %v, leader %d of epoch %d, preferred %d, aborted", topic, p.Partition,
				name(p.ErrorCode), p.HighWatermark, p.LastStableOffset, p.LogStartOffset, p.DivergingEpoch, realLeader(p.CurrentLeader.LeaderID), p.CurrentLeader.LeaderEpoch, p.PreferredReadReplica)
			for _, a := range p.AbortedTransactions {
				fmt.Fprintf(&b, " %d from %d", r.producer(a.ProducerID), a.FirstOffset)
			}
			b.WriteByte('\n')
			for raw := p.RecordBatches; len(raw) > 12; {
				n := 12 + int(binary.BigEndian.Uint32(raw[8:]))
				if n > len(raw) {
					break // a part of a batch, which brokers send, and clients drop
				}
				var batch kmsg.RecordBatch
				if err := batch.ReadFrom(raw[:n]); err != nil {
					return err.Error()
				}
				raw = raw[n:]
				if batch.Attributes&(1<<5) != 0 {
					batch.FirstTimestamp, batch.MaxTimestamp = 0, 0 // the coordinator's
				}
				fmt.Fprintf(&b, "  at %d: %d records to +%d, epoch %d, attributes %x, times %d to %d, producer %d of epoch %d at %d, %x\n", batch.FirstOffset, batch.NumRecords, batch.LastOffsetDelta,
					batch.PartitionLeaderEpoch, batch.Attributes, batch.FirstTimestamp, batch.MaxTimestamp-batch.FirstTimestamp,
					r.producer(batch.ProducerID), batch.ProducerEpoch, batch.FirstSequence, r.content(batch))
			}
		}
	}
	return b.String()
}

func realLeader(id int32) int32 {
	if id < 0 {
		return id
	}
	return id &^ disklessBit
}

func (r *reader) producer(id int64) int {
	if id < 0 {
		return -1
	}
	if _, ok := r.ids[id]; !ok {
		r.ids[id] = len(r.ids)
	}
	return r.ids[id]
}

// content sums up records; markers hold what the coordinator pleases.
func (r *reader) content(b kmsg.RecordBatch) []byte {
	if b.Attributes&(1<<5) != 0 {
		return nil
	}
	sum := sha256.Sum256(b.Records)
	return sum[:4]
}

func name(code int16) string {
	if err := kerr.ErrorForCode(code); err != nil {
		return err.(*kerr.Error).Message
	}
	return "NONE"
}

// anyone leaves open which partition gives what there is room for: brokers leave
// that to the order in the request, sluice to who has waited longest.
func anyone(words string) string {
	lines := strings.Split(words, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// newest is the newest version of a request that the brokers know.
func newest(t testing.TB, bootstrap string, key int16, opts ...kgo.Opt) int16 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, client(t, bootstrap, opts...))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range resp.ApiKeys {
		if k.ApiKey == key {
			return k.MaxVersion
		}
	}
	t.Fatalf("the brokers do not know %s", kmsg.NameForKey(key))
	return 0
}

// capped are newest versions, but for some keys.
func capped(keys map[int16]int16) kgo.Opt {
	most := kversion.Stable()
	for key, version := range keys {
		most.SetMaxKeyVersion(key, version)
	}
	return kgo.MaxVersions(most)
}

// ledBy makes a topic whose partitions one broker leads, and waits until all
// know it.
func ledBy(t *testing.T, p *sharedParts, pl *place, partitions int, replicas ...int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req := kmsg.NewPtrCreateTopicsRequest()
	ct := kmsg.NewCreateTopicsRequestTopic()
	ct.Topic, ct.NumPartitions, ct.ReplicationFactor = pl.topic, -1, -1
	for i := range partitions {
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Partition, a.Replicas = int32(i), replicas
		ct.ReplicaAssignment = append(ct.ReplicaAssignment, a)
	}
	// Markers of transactions are of today, and an answer holds one segment's.
	never, one, long := "-1", "1", "3153600000000"
	for key, value := range map[string]*string{"retention.ms": &never, "min.insync.replicas": &one, "segment.ms": &long} {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = key, value
		ct.Configs = append(ct.Configs, c)
	}
	req.Topics, req.TimeoutMillis = append(req.Topics, ct), 30_000
	resp, err := req.RequestWith(ctx, client(t, pl.bootstrap))
	if err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatal(err, resp)
	}
	for _, b := range append(p.kafka.Bootstrap(), pl.bootstrap) {
		adm := kadm.NewClient(client(t, b))
		eventually(t, "a broker knows "+pl.topic, func() (bool, string) {
			m, err := adm.Metadata(ctx, pl.topic)
			if err != nil {
				return false, err.Error()
			}
			topic := m.Topics[pl.topic]
			pl.id = topic.ID
			return len(topic.Partitions) == partitions && topic.Partitions[0].Leader&^disklessBit == replicas[0], fmt.Sprint(topic.Err)
		})
	}
	eventually(t, "sluice knows "+pl.topic, func() (bool, string) { return p.sluice.Cluster().Facts(ctx, pl.topic).Known, "" })
}

// fetchPlaces are a topic for each way to ask, all led by broker 1.
func fetchPlaces(t *testing.T, p *sharedParts, prefix string, partitions int, replicas ...int32) []place {
	t.Helper()
	places := []place{
		{name: "direct", bootstrap: bootstrapOf(p.kafka), node: replicas[0], topic: prefix + "-direct"},
		{name: "control", bootstrap: p.sluice.Bootstrap, node: replicas[0], topic: prefix + "-control"},
		{name: "telemetry", bootstrap: p.sluice.Bootstrap, node: replicas[0] | disklessBit, topic: prefix + "-telemetry"},
		{name: "telemetry, at the broker's own port", bootstrap: p.sluice.Bootstrap, node: replicas[0], topic: prefix + "-telemetry"},
	}
	for i := range places[:3] {
		ledBy(t, p, &places[i], partitions, replicas...)
	}
	places[3].id = places[2].id
	return places
}

// put writes a batch to a partition.
func put(t *testing.T, cl *kgo.Client, pl place, partition int32, batch []byte) {
	t.Helper()
	req := producing(pl, "", batch)
	req.Topics[0].Partitions[0].Partition = partition
	resp, err := cl.Broker(int(pl.node)).Request(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if code := resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatalf("%s-%d: %s", pl.topic, partition, name(code))
	}
}

// several are values of records that together are worth an object, or not.
func several(n int, value []byte) (values [][]byte) {
	for range n {
		values = append(values, value)
	}
	return values
}

// fetchVersions are some: before sessions, with them, with leader epochs, with
// diverging ones, with topic ids, with endpoints, and the newest.
var fetchVersions = []int16{4, 7, 9, 12, 13, 16, 18}

// Whatever a client may ask for, it gets the batches, offsets, errors, aborted
// transactions and sessions that it gets from the broker, from a log that holds
// placeholders and ordinary batches in turn too.
func TestFetchesAreAnsweredAsDirect(t *testing.T) {
	p := shared(t)
	places := fetchPlaces(t, p, "fetches", 3, 1)
	tiny := []byte("x")
	for _, pl := range places[:3] {
		cl := client(t, pl.bootstrap)
		for partition := range int32(3) {
			for n := range 6 {
				values := several(10, worthwhile)
				if n%3 == 2 {
					values = several(3, tiny) // stays inline
				}
				put(t, cl, pl, partition, batchOf(-1, -1, -1, false, values...))
			}
		}
		x := &transactor{t: t, ctx: t.Context(), place: pl, produce: 11, txn: pl.topic, timeout: time.Minute,
			cl: client(t, pl.bootstrap, capped(map[int16]int16{0: 11, 22: 4, 24: 3, 26: 3}))}
		for i := range 6 {
			if i%2 == 0 {
				x.init() // or markers would differ
			}
			x.begin()
			eventually(t, "a batch is written", func() (bool, string) { said := x.write(); return said == "NONE", said })
			x.end(i%3 == 1)
		}
		adm := kadm.NewClient(cl)
		eventually(t, "all transactions have ended", func() (bool, string) {
			stable, err := adm.ListCommittedOffsets(t.Context(), pl.topic)
			if err != nil {
				return false, err.Error()
			}
			return stable[pl.topic][0].Offset == 64, fmt.Sprint(stable[pl.topic][0].Offset)
		})
	}
	open := make(map[string]*transactor) // holds the last stable offset of partition 0
	for _, pl := range places[:3] {
		x := &transactor{t: t, ctx: t.Context(), place: pl, produce: 11, txn: "open-" + pl.topic, timeout: 5 * time.Minute,
			cl: client(t, pl.bootstrap, capped(map[int16]int16{0: 11, 22: 4, 24: 3, 26: 3}))}
		x.init()
		x.begin()
		eventually(t, "a batch is written", func() (bool, string) { said := x.write(); return said == "NONE", said })
		open[pl.topic] = x
	}
	if stored := p.sluice.metric(t, "sluice_diskless_stored_batches_total"); stored == 0 {
		t.Fatal("nothing is in objects")
	}

	committed := func(req *kmsg.FetchRequest) { req.IsolationLevel = 1 }
	bytes := func(request int32) func(*kmsg.FetchRequest) {
		return func(req *kmsg.FetchRequest) { req.MaxBytes = request }
	}
	limited := func(partition int32, offset int64, most int32) part {
		p := from(partition, offset)
		p.maxBytes = most
		return p
	}
	epochs := func(current, fetched int32) part {
		p := from(1, 5)
		p.currentEpoch, p.fetchedEpoch = current, fetched
		return p
	}
	all := []part{from(0, 0), from(1, 0), from(2, 0)}
	steps := []struct {
		what  string
		since int16 // version
		ask   func(r *reader) string
	}{
		{"everything", 4, func(r *reader) string { return r.ask(all, nil) }},
		{"what is committed", 4, func(r *reader) string { return r.ask(all, committed) }},
		{"what is committed, from the middle of an aborted transaction", 4, func(r *reader) string { return r.ask([]part{from(0, 47)}, committed) }},
		{"what an open transaction holds back", 4, func(r *reader) string { return r.ask([]part{from(0, 64)}, committed) }},
		{"the same, uncommitted", 4, func(r *reader) string { return r.ask([]part{from(0, 64)}, nil) }},
		{"from the middle of a batch", 4, func(r *reader) string { return r.ask([]part{from(0, 3), from(1, 15), from(2, 21)}, nil) }},
		{"from a batch's last offset", 4, func(r *reader) string { return r.ask([]part{from(1, 9), from(2, 22)}, nil) }},
		{"the end", 4, func(r *reader) string { return r.ask([]part{from(1, 46)}, nil) }},
		{"beyond the end", 4, func(r *reader) string { return r.ask([]part{from(1, 47), from(2, 1)}, nil) }},
		{"before the start", 4, func(r *reader) string { return r.ask([]part{from(1, -1), from(2, 1)}, nil) }},
		{"a partition that does not exist", 4, func(r *reader) string { return r.ask([]part{from(7, 0), from(2, 1)}, nil) }},
		{"a partition's limit below one batch", 4, func(r *reader) string { return r.ask([]part{limited(1, 0, 1), limited(2, 0, 1)}, nil) }},
		{"no bytes of a partition", 4, func(r *reader) string { return r.ask([]part{limited(1, 0, 0)}, nil) }},
		{"a request's limit below one batch", 4, func(r *reader) string { return anyone(r.ask(all, bytes(1))) }},
		{"no bytes", 4, func(r *reader) string { return anyone(r.ask(all, bytes(0))) }},
		{"no bytes of anything", 4, func(r *reader) string { return r.ask([]part{limited(2, 20, 0)}, bytes(0)) }},
		{"more than there will be", 4, func(r *reader) string {
			return r.ask([]part{from(1, 0)}, func(req *kmsg.FetchRequest) { req.MinBytes, req.MaxWaitMillis = 1<<30, 1 })
		}},
		{"nothing", 4, func(r *reader) string { return r.ask(nil, nil) }},
		{"with the leader's epoch", 9, func(r *reader) string { return r.ask([]part{epochs(0, -1)}, nil) }},
		{"with an epoch that has not come", 9, func(r *reader) string { return r.ask([]part{epochs(5, -1)}, nil) }},
		{"having read in this epoch", 12, func(r *reader) string { return r.ask([]part{epochs(0, 0)}, nil) }},
		{"having read in a later one", 12, func(r *reader) string { return r.ask([]part{epochs(-1, 3)}, nil) }},
		{"a session begins", 7, func(r *reader) string { return r.within(0, all...) }},
		{"it has moved on", 7, func(r *reader) string { return r.within(1, from(0, 66), from(1, 46), from(2, 46)) }},
		{"nothing has come", 7, func(r *reader) string { return r.within(2) }},
		{"one is read again, from the middle of a batch", 7, func(r *reader) string { return r.within(3, from(1, 34)) }},
		{"two are forgotten, and one is read again", 7, func(r *reader) string {
			return r.ask([]part{from(2, 40)}, func(req *kmsg.FetchRequest) {
				req.SessionID, req.SessionEpoch = r.session, 4
				f := kmsg.NewFetchRequestForgottenTopic()
				f.Topic, f.TopicID, f.Partitions = r.place.topic, r.place.id, []int32{0, 1}
				req.ForgottenTopics = append(req.ForgottenTopics, f)
			})
		}},
		{"what was forgotten comes back", 7, func(r *reader) string { return r.within(5, from(0, 0)) }},
		{"an epoch is left out", 7, func(r *reader) string { return r.within(9) }},
		{"an id that nobody has", 7, func(r *reader) string {
			return r.ask(all, func(req *kmsg.FetchRequest) { req.SessionID, req.SessionEpoch = 1<<30, 1 })
		}},
		{"a new session in the old one's place", 7, func(r *reader) string {
			return r.ask([]part{from(1, 30)}, func(req *kmsg.FetchRequest) { req.SessionID, req.SessionEpoch = r.session, 0 })
		}},
		{"it goes on", 7, func(r *reader) string { return r.within(1, from(1, 0)) }},
		{"it ends", 7, func(r *reader) string { return r.within(-1, from(1, 43)) }},
		{"a topic that does not exist", 4, func(r *reader) string {
			return r.ask(all, func(req *kmsg.FetchRequest) {
				req.Topics[0].Topic, req.Topics[0].TopicID = "never-made-telemetry", [16]byte{1, 2, 3}
			})
		}},
	}
	compared, began := 0, time.Now()
	for _, version := range fetchVersions {
		readers := make([]*reader, len(places))
		for i, pl := range places {
			readers[i] = &reader{t: t, place: pl, cl: client(t, pl.bootstrap, capped(map[int16]int16{1: version})), ids: map[int64]int{}}
		}
		for _, step := range steps {
			if version < step.since {
				continue
			}
			direct := step.ask(readers[0])
			for _, r := range readers[1:] {
				if got := step.ask(r); got != direct {
					t.Errorf("%s, v%d: %s says\n%sand directly\n%s", step.what, version, r.place.name, got, direct)
				}
				compared++
			}
		}
	}
	t.Logf("%d answers compared in %v", compared, time.Since(began).Round(time.Millisecond))
	for _, x := range open {
		x.end(true)
	}
}

// A topic that is made anew under its old name is another one: nobody reads the
// old one's records, by name or by id, and readers by id are told.
func TestARecreatedTopicIsAnother(t *testing.T) {
	p := shared(t)
	places := fetchPlaces(t, p, "recreated", 1, 1)
	versions := []int16{12, 13, 18}
	readers := make(map[string]*reader)
	key := func(pl place, version int16) string { return pl.name + strconv.Itoa(int(version)) }
	for _, pl := range places[:3] {
		put(t, client(t, pl.bootstrap), pl, 0, batchOf(-1, -1, -1, false, several(10, worthwhile)...))
	}
	said := make(map[string][]string)
	say := func(r *reader, version int16, words string) {
		said[key(r.place, version)] = append(said[key(r.place, version)], words)
	}
	for _, pl := range places {
		for _, version := range versions {
			r := &reader{t: t, place: pl, cl: client(t, pl.bootstrap, capped(map[int16]int16{1: version})), ids: map[int64]int{}}
			readers[key(pl, version)] = r
			say(r, version, r.within(0, from(0, 0)))
		}
	}
	old := places
	for i, pl := range old[:3] {
		adm := kadm.NewClient(client(t, pl.bootstrap))
		if _, err := adm.DeleteTopics(t.Context(), pl.topic); err != nil {
			t.Fatal(err)
		}
		for _, b := range p.kafka.Bootstrap() {
			adm := kadm.NewClient(client(t, b))
			eventually(t, "it is gone", func() (bool, string) {
				m, err := adm.Metadata(t.Context(), pl.topic)
				return err == nil && m.Topics[pl.topic].Err != nil, fmt.Sprint(err)
			})
		}
		next := pl
		ledBy(t, p, &next, 1, 1)
		if next.id == pl.id {
			t.Fatal("it has the old id")
		}
		put(t, client(t, pl.bootstrap), next, 0, batchOf(-1, -1, -1, false, several(4, []byte(strings.Repeat("new", 400)))...))
		places[i].id = next.id
	}
	places[3].id = places[2].id
	for _, pl := range places {
		for _, version := range versions {
			r := readers[key(pl, version)]
			say(r, version, r.within(1))                    // in the session of the old one
			say(r, version, r.ask([]part{from(0, 0)}, nil)) // by the old id
			r.place.id = pl.id
			say(r, version, r.ask([]part{from(0, 0)}, nil))
			say(r, version, r.within(0, from(0, 2)))
		}
	}
	for _, version := range versions {
		direct := said[key(places[0], version)]
		for _, pl := range places[1:] {
			for i, got := range said[key(pl, version)] {
				if got != direct[i] {
					t.Errorf("v%d, answer %d: %s says\n%sand directly\n%s", version, i, pl.name, got, direct[i])
				}
			}
		}
		if !strings.Contains(direct[4], "4 records to +3") {
			t.Errorf("v%d: the new topic is not read:\n%s", version, direct[4])
		}
	}
}

// Leader epochs mean what they mean: who has read in an old one is told where it
// ended, who asks in one that is over or has not come is refused.
func TestLeaderEpochsAreTheBrokers(t *testing.T) {
	p := shared(t)
	x := tools{p, t}
	places := fetchPlaces(t, p, "epochs", 1, 1, 2, 3)
	for _, pl := range places[:3] {
		put(t, client(t, pl.bootstrap), pl, 0, batchOf(-1, -1, -1, false, several(10, worthwhile)...))
	}
	for i := range places[:3] {
		x.lead(t.Context(), places[i].topic, []int32{2, 1, 3})
	}
	for i := range places {
		places[i].node = 2 | places[i].node&disklessBit
	}
	for _, pl := range places[:3] {
		cl := client(t, pl.bootstrap)
		eventually(t, "the new leader leads", func() (bool, string) {
			m, err := kadm.NewClient(cl).Metadata(t.Context(), pl.topic)
			return err == nil && m.Topics[pl.topic].Partitions[0].Leader == pl.node, fmt.Sprint(err)
		})
		put(t, cl, pl, 0, batchOf(-1, -1, -1, false, several(10, worthwhile)...))
	}
	now := make(map[string]int32)
	readers := make([]*reader, len(places))
	for i, pl := range places {
		readers[i] = &reader{t: t, place: pl, cl: client(t, pl.bootstrap), ids: map[int64]int{}}
		now[pl.topic] = x.partition(pl.topic, 0).LeaderEpoch
	}
	// How many epochs an election takes is the controller's.
	common := func(r *reader, words string) string {
		e := now[r.place.topic]
		for _, format := range []string{"epoch %d", "{%d ", "Epoch:%d"} {
			words = strings.ReplaceAll(words, fmt.Sprintf(format, e), "the present epoch ")
		}
		return words
	}
	for _, epochs := range [][2]int32{{-1, -1}, {0, -1}, {9, 0}, {10, 0}, {11, 0}, {-1, 0}, {-1, 10}, {-1, 99}, {10, 10}} {
		for _, offset := range []int64{0, 5, 10, 15, 20, 25} {
			ask := func(r *reader) string {
				ask := from(0, offset)
				ask.currentEpoch, ask.fetchedEpoch = epochs[0], epochs[1]
				for _, e := range []*int32{&ask.currentEpoch, &ask.fetchedEpoch} {
					if *e >= 9 && *e < 99 { // relative to now
						*e += now[r.place.topic] - 10
					}
				}
				return common(r, r.ask([]part{ask}, nil))
			}
			direct := ask(readers[0])
			for _, r := range readers[1:] {
				if got := ask(r); got != direct {
					t.Errorf("epochs %v, offset %d: %s says\n%sand directly\n%s", epochs, offset, r.place.name, got, direct)
				}
			}
		}
		ask := func(r *reader) string {
			req := kmsg.NewPtrOffsetForLeaderEpochRequest()
			req.ReplicaID = -1
			et := kmsg.NewOffsetForLeaderEpochRequestTopic()
			et.Topic = r.place.topic
			ep := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
			ep.CurrentLeaderEpoch, ep.LeaderEpoch = epochs[0], epochs[1]
			for _, e := range []*int32{&ep.CurrentLeaderEpoch, &ep.LeaderEpoch} {
				if *e >= 9 && *e < 99 {
					*e += now[r.place.topic] - 10
				}
			}
			et.Partitions = append(et.Partitions, ep)
			req.Topics = append(req.Topics, et)
			resp, err := r.cl.Broker(int(r.place.node)).Request(t.Context(), req)
			if err != nil {
				return err.Error()
			}
			got := resp.(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0]
			return common(r, fmt.Sprintf("%s: epoch %d ends at %d", name(got.ErrorCode), got.LeaderEpoch, got.EndOffset))
		}
		direct := ask(readers[0])
		for _, r := range readers[1:] {
			if got := ask(r); got != direct {
				t.Errorf("the end of epochs %v: %s says %s, and directly %s", epochs, r.place.name, got, direct)
			}
		}
	}
}

// Consumers in another zone are sent to the follower there, on the low-latency
// tier; on the diskless one there is nothing to be had by that, for payloads do
// not come from brokers.
func TestFollowersAreReadFrom(t *testing.T) {
	p := shared(t)
	places := fetchPlaces(t, p, "racks", 1, 1, 2, 3)
	var wrote [][]*kgo.Record
	for _, pl := range places[:3] {
		records := filled(pl.topic, 1, 60)
		franz{}.producer(t, pl.bootstrap, "none")(records)
		wrote = append(wrote, records)
	}
	for i, pl := range places {
		r := &reader{t: t, place: pl, cl: client(t, pl.bootstrap), ids: map[int64]int{}}
		want := "preferred 3,"
		if pl.node&disklessBit != 0 {
			want = "preferred -1,"
		}
		eventually(t, pl.name+" says "+want, func() (bool, string) {
			words := r.ask([]part{from(0, 0)}, func(req *kmsg.FetchRequest) { req.Rack = "rack-3" })
			return strings.Contains(words, want), words
		})
		// And there it reads.
		read := consumed(t, pl.bootstrap, 60, []kgo.Opt{kgo.Rack("rack-3")}, pl.topic)
		same(t, pl.name, wrote[min(i, 2)], read, true)
	}
}
