package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/harness"
)

// step is one thing that a client or an operator does. It names topics, groups
// and producers by numbers, and never what an earlier step made: any part of a
// script is a script.
type step struct {
	Op        string            `json:"op"`
	Topic     int               `json:"topic,omitempty"`
	Partition int32             `json:"partition,omitempty"`
	Group     int               `json:"group,omitempty"`
	Producer  int               `json:"producer,omitempty"` // 0 for one without an id
	Replica   int               `json:"replica,omitempty"`  // of sluice, that is asked
	Crossed   bool              `json:"crossed,omitempty"`  // at the broker's other port; where ids are named, by the diskless ones
	As        string            `json:"as,omitempty"`       // a client of which release
	Offset    int64             `json:"offset,omitempty"`
	Limit     int32             `json:"limit,omitempty"` // bytes of an answer; 0 for many
	Committed bool              `json:"committed,omitempty"`
	Commit    bool              `json:"commit,omitempty"`
	Acks      int16             `json:"acks,omitempty"`
	Count     int32             `json:"count,omitempty"`
	Replicas  [][]int32         `json:"replicas,omitempty"`
	Configs   map[string]string `json:"configs,omitempty"`
	Batch     *batchSpec        `json:"batch,omitempty"`
	How       string            `json:"how,omitempty"`
}

func (s step) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// batchSpec is a batch that is the same wherever it is made.
type batchSpec struct {
	Seed    uint64 `json:"seed"`
	Records int    `json:"records"`
	Size    int    `json:"size"` // of a value
	Codec   string `json:"codec"`
	Words   bool   `json:"words,omitempty"` // values that compress
	Odd     bool   `json:"odd,omitempty"`   // headers; null and empty keys and values
	Keys    bool   `json:"keys,omitempty"`
	Times   string `json:"times,omitempty"` // up (by default), down, mixed, future
	Fault   string `json:"fault,omitempty"` // what is wrong with it
}

var batchCodecs = map[string]kgo.CompressionCodec{
	"gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// make builds the batch as a producer sends it.
func (spec batchSpec) make(id int64, epoch int16, sequence int32, transactional bool) []byte {
	source := rand.NewChaCha8([32]byte{byte(spec.Seed), byte(spec.Seed >> 8), byte(spec.Seed >> 16)})
	rng := rand.New(source)
	value := func(n int) []byte {
		b := make([]byte, n)
		if _, _ = source.Read(b); spec.Words {
			for i := range b {
				b[i] = "etaoin shrdlu"[int(b[i])%3]
			}
		}
		return b
	}
	b := kmsg.NewRecordBatch()
	b.Magic, b.NumRecords, b.PartitionLeaderEpoch, b.LastOffsetDelta = 2, int32(spec.Records), -1, int32(spec.Records-1)
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = id, epoch, sequence
	if transactional {
		b.Attributes = 1 << 4
	}
	for i := range spec.Records {
		at := baseTime + int64(spec.Seed%50)*1000
		switch spec.Times {
		case "down":
			at -= int64(i) * 10
		case "mixed":
			at += rng.Int64N(100_000)
		case "future":
			at = farFuture + int64(i)
		default:
			at += int64(i) * 10
		}
		if i == 0 {
			b.FirstTimestamp, b.MaxTimestamp = at, at
		}
		b.MaxTimestamp = max(b.MaxTimestamp, at)
		r := kmsg.NewRecord()
		r.OffsetDelta, r.TimestampDelta64, r.Value = int32(i), at-b.FirstTimestamp, value(spec.Size)
		if spec.Keys {
			r.Key = fmt.Appendf(nil, "key %d", i%3)
		}
		if spec.Odd {
			r.Key = [][]byte{nil, {}, {0}, []byte("key")}[rng.IntN(4)]
			if rng.IntN(4) == 0 {
				r.Value = [][]byte{nil, {}}[rng.IntN(2)]
			}
			for h := range rng.IntN(4) {
				r.Headers = append(r.Headers, kmsg.Header{Key: []string{"", "trace", "ключ"}[h%3], Value: [][]byte{nil, {}, value(20)}[rng.IntN(3)]})
			}
		}
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		b.Records = r.AppendTo(b.Records)
	}
	if codec, ok := batchCodecs[spec.Codec]; ok {
		c, err := kgo.DefaultCompressor(codec)
		if err != nil {
			panic(err)
		}
		out, kind := c.Compress(new(bytes.Buffer), b.Records)
		b.Records = bytes.Clone(out)
		b.Attributes |= int16(kind)
	}
	switch spec.Fault {
	case "count":
		b.NumRecords++
	case "delta":
		b.LastOffsetDelta++
	case "codec":
		b.Attributes |= 7
	case "cut":
		b.Records = b.Records[:len(b.Records)/2]
	case "control":
		b.Attributes |= isControl
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	switch spec.Fault {
	case "crc":
		raw[len(raw)-1]++
	case "magic":
		raw[16] = 9
	case "twice":
		raw = append(raw, raw...)
	}
	return raw
}

// generated is what scripts run on: brokers, and two replicas of sluice with one
// store in front of them.
type generated struct {
	t        *testing.T
	kafka    *harness.Kafka
	opts     [2]replica
	replicas [2]*sluice
	class    string // of mixed topics
	runs     int
	tamper   func(world string, req kmsg.Request, resp kmsg.Response) // plants a fault in what clients are told
}

func startGenerated(t *testing.T) *generated {
	t.Helper()
	x := &generated{t: t, kafka: sharedKafka(t), class: "control"}
	s3 := harness.StartS3(t)
	for i := range x.opts {
		x.opts[i] = replica{Kafka: x.kafka.Bootstrap(), Store: s3Store(s3, "generated"), Port: harness.Ports(t, replicaPorts), Log: io.Discard}
		x.start(i)
	}
	return x
}

func (x *generated) start(i int) {
	x.t.Helper()
	r := x.opts[i]
	r.Extra = mixedRule + x.class + " }\n"
	x.replicas[i] = startSluice(x.t, r)
}

func (x *generated) restart(i int) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.replicas[i].Shutdown(ctx); err != nil {
		x.t.Fatalf("a replica does not shut down: %v", err)
	}
	x.start(i)
}

func (x *generated) reclass() {
	x.t.Helper()
	was := x.class
	if x.class = "telemetry"; was == x.class {
		x.class = "control"
	}
	for i, s := range x.replicas {
		r := x.opts[i].withDefaults(x.t)
		r.Extra = strings.Replace(mixedRule+x.class+" }\n"+r.Extra, "\n\n", "\n", 1)
		cfg, err := config.Load(r.write(x.t))
		if err != nil {
			x.t.Fatal(err)
		}
		if applied, _, err := s.Reload(cfg); err != nil || len(applied) == 0 {
			x.t.Fatalf("reload applied %v: %v", applied, err)
		}
	}
}

// world is what one target has seen of a script.
type world struct {
	x      *generated
	name   string
	run    string
	ctx    context.Context
	words  *speaker
	direct *kgo.Client // to the brokers, for waiting only

	clients   map[string]*kgo.Client
	topics    map[int]*topicState
	producers map[int]*producerState
	groups    map[int]bool
}

type topicState struct {
	exists   bool
	id       kadm.TopicID
	leaders  []int32
	replicas [][]int32
	ends     map[int32]int64 // what has been acknowledged
}

type producerState struct {
	txn      string
	id       int64
	epoch    int16
	as       string
	next     map[string]int32 // sequences by topic and partition
	last     map[string][]byte
	open     map[string]bool // what is in the transaction
	previous *producerState
}

// worldNames are the targets; the first is the measure. Topics of split are in
// either tier by their number.
var worldNames = []string{"direct", "control", "telemetry", "mixed", "split"}

func (x *generated) worlds() []*world {
	x.runs++
	run := fmt.Sprintf("generated-%09d-%d", time.Now().UnixNano()%1e9, x.runs)
	var all []*world
	for _, name := range worldNames {
		w := &world{
			x: x, name: name, run: run, words: newSpeaker(),
			clients: map[string]*kgo.Client{}, topics: map[int]*topicState{}, producers: map[int]*producerState{}, groups: map[int]bool{},
		}
		w.direct = w.open(bootstrapOf(x.kafka))
		for i := range topicsOfScripts {
			w.words.call(w.topic(i), fmt.Sprintf("topic-%d", i))
		}
		for i := range groupsOfScripts {
			w.words.call(w.group(i), fmt.Sprintf("group-%d", i))
		}
		for i := range producersOfScripts {
			w.words.call(w.txn(i), fmt.Sprintf("txn-%d", i))
		}
		all = append(all, w)
	}
	return all
}

const topicsOfScripts, groupsOfScripts, producersOfScripts = 3, 2, 5

// own is a name of this world's, as long as that of any other.
func (w *world) own(what string, i int, class string) string {
	return fmt.Sprintf("%s-%s%d-%.*s-%s", w.run, what, i, 24-len(w.name)-len(class), "xxxxxxxxxxxxxxxxxxxxxxxx", w.name) + "-" + class
}

func (w *world) topic(i int) string {
	class := w.name
	if w.name == "split" {
		class = []string{"control", "telemetry"}[i%2]
	}
	return w.own("topic", i, class)
}

func (w *world) group(i int) string { return w.own("group", i, "") }
func (w *world) txn(i int) string   { return w.own("txn", i, "") }

func (w *world) open(bootstrap string, opts ...kgo.Opt) *kgo.Client {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.MetadataMinAge(50 * time.Millisecond), kgo.RetryTimeout(patience / 2),
	}, opts...)...)
	if err != nil {
		panic(err)
	}
	return cl
}

// client is the one of a release at a replica.
func (w *world) client(s step) *kgo.Client {
	replica := s.Replica
	if w.name == "direct" {
		replica = 0
	}
	key := fmt.Sprint(replica, s.As)
	if cl, ok := w.clients[key]; ok {
		return cl
	}
	bootstrap := bootstrapOf(w.x.kafka)
	if w.name != "direct" {
		bootstrap = w.x.replicas[replica].Bootstrap
	}
	var versions kgo.Opt
	switch s.As {
	case "2.4":
		versions = kgo.MaxVersions(kversion.V2_4_0())
	case "3.6":
		versions = kgo.MaxVersions(kversion.V3_6_0())
	case "tv1":
		versions = capped(map[int16]int16{0: 11, 22: 4, 24: 3, 25: 3, 26: 3, 28: 4})
	default:
		versions = kgo.MaxVersions(kversion.Stable())
	}
	cl := w.open(bootstrap, versions)
	w.clients[key] = cl
	return cl
}

// leave closes the clients of a replica, or all.
func (w *world) leave(replica int) {
	for key, cl := range w.clients {
		if replica < 0 || strings.HasPrefix(key, fmt.Sprint(replica)) {
			cl.Close()
			delete(w.clients, key)
		}
	}
}

// node is a broker as the step's client calls it.
func (w *world) node(s step, id int32) int {
	if s.Crossed && w.name != "direct" {
		id |= disklessBit
	}
	return int(id)
}

func (w *world) state(i int) *topicState {
	st, ok := w.topics[i]
	if !ok {
		st = &topicState{ends: map[int32]int64{}}
		w.topics[i] = st
	}
	return st
}

// leader of a partition; any broker for what there is not.
func (w *world) leader(s step) int32 {
	if st := w.state(s.Topic); st.exists && int(s.Partition) < len(st.leaders) {
		return st.leaders[s.Partition]
	}
	return 1
}

// exists reports whether brokers must know the step's partition.
func (w *world) exists(s step) bool {
	st := w.state(s.Topic)
	return st.exists && s.Partition >= 0 && int(s.Partition) < len(st.leaders)
}

// ask puts a request to one broker.
func (w *world) ask(s step, node int, req kmsg.Request) (kmsg.Response, error) {
	resp, err := w.client(s).Broker(node).Request(w.ctx, req)
	if err == nil && w.x.tamper != nil {
		w.x.tamper(w.name, req, resp)
	}
	return resp, err
}

// askAny puts a request to whichever broker it is for. Coordinators of a new
// cluster may need longer than clients try.
func (w *world) askAny(s step, req kmsg.Request) (kmsg.Response, error) {
	resp, err := w.client(s).Request(w.ctx, req)
	for deadline := time.Now().Add(patience / 3); err != nil && failure(err) == noAnswer && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		resp, err = w.client(s).Request(w.ctx, req)
	}
	if err == nil && w.x.tamper != nil {
		w.x.tamper(w.name, req, resp)
	}
	return resp, err
}

// passing are errors of a moment: of leaders and coordinators on the move.
var passing = map[int16]bool{3: true, 5: true, 6: true, 7: true, 9: true, 14: true, 15: true, 16: true, 19: true, 20: true, 51: true, 56: true, 74: true, 75: true, 76: true, 78: true, 100: true, 103: true, 109: true}

// await polls until a condition holds; what it waits for is the cluster's, so
// that it fails the test and says nothing of a difference.
func (w *world) await(what string, ok func() (bool, string)) {
	deadline := time.Now().Add(patience)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		good, state := ok()
		if good {
			return
		}
		if time.Now().After(deadline) {
			panic(fmt.Errorf("%s: %s did not come in %v: %s", w.name, what, patience, state))
		}
		time.Sleep(pause)
	}
}

// insist repeats a request while the answer is an error of a moment, and the
// partition is there. What connections say is not the broker's answer.
func (w *world) insist(s step, exists bool, ask func() (code int16, err error)) error {
	deadline := time.Now().Add(patience / 3)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		code, err := ask()
		if err == nil && !(exists && passing[code]) {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
		if exists && w.state(s.Topic).exists {
			w.agreed(s.Topic) // there may be a new leader
		}
	}
}

// settle waits until all brokers know a topic, or that it is gone, and have
// nothing left to do for it.
func (w *world) settle(i int) {
	st := w.state(i)
	topic := w.topic(i)
	w.await("brokers know "+topic, func() (bool, string) { return w.agreed(i) })
	if !st.exists {
		time.Sleep(50 * time.Millisecond) // brokers let go of a log a moment after its name
		return
	}
	// A new leader knows what is committed a moment after it leads.
	for partition := range st.leaders {
		w.settleEnd(i, int32(partition))
	}
	for _, s := range w.x.replicas {
		if w.name != "direct" {
			w.await("sluice knows "+topic, func() (bool, string) { return s.Cluster().Facts(w.ctx, topic).Known, "" })
		}
	}
}

// agreed asks all brokers about a topic, and takes from them who leads.
func (w *world) agreed(i int) (bool, string) {
	st := w.state(i)
	topic := w.topic(i)
	var first []int32
	for _, id := range w.x.kafka.Nodes() {
		req := kmsg.NewPtrMetadataRequest()
		mt := kmsg.NewMetadataRequestTopic()
		mt.Topic = &topic
		req.Topics = append(req.Topics, mt)
		resp, err := w.direct.Broker(int(id)).Request(w.ctx, req)
		if err != nil {
			return false, err.Error()
		}
		got := resp.(*kmsg.MetadataResponse).Topics[0]
		if !st.exists {
			if got.ErrorCode != 3 {
				return false, name(got.ErrorCode)
			}
			continue
		}
		if got.ErrorCode != 0 || len(got.Partitions) != len(st.replicas) {
			return false, fmt.Sprintf("%s, %d partitions of %d", name(got.ErrorCode), len(got.Partitions), len(st.replicas))
		}
		leaders := make([]int32, len(got.Partitions))
		for _, p := range got.Partitions {
			if p.Leader < 0 || !slices.Equal(p.Replicas, st.replicas[p.Partition]) || len(p.ISR) != len(p.Replicas) {
				return false, fmt.Sprintf("partition %d has leader %d, replicas %v, isr %v", p.Partition, p.Leader, p.Replicas, p.ISR)
			}
			leaders[p.Partition] = p.Leader
		}
		if first == nil {
			first = leaders
		}
		if !slices.Equal(leaders, first) {
			return false, fmt.Sprintf("leaders are %v, and elsewhere %v", leaders, first)
		}
		st.leaders, st.id = leaders, got.TopicID
	}
	return true, ""
}

// settleEnd waits until what was acknowledged can be read.
func (w *world) settleEnd(i int, partition int32) {
	st := w.state(i)
	w.await(fmt.Sprintf("the end of topic %d, partition %d", i, partition), func() (bool, string) {
		req := listing(w.topic(i), partition, -1, false)
		resp, err := w.direct.Broker(int(st.leaders[partition])).Request(w.ctx, req)
		if err != nil {
			return false, err.Error()
		}
		got := resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
		if got.ErrorCode != 0 {
			w.agreed(i) // who leads has changed since all brokers were asked
		}
		return got.ErrorCode == 0 && got.Offset >= st.ends[partition], fmt.Sprintf("error %d, offset %d of %d", got.ErrorCode, got.Offset, st.ends[partition])
	})
}

func listing(topic string, partition int32, at int64, committed bool) *kmsg.ListOffsetsRequest {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	if committed {
		req.IsolationLevel = 1
	}
	lt := kmsg.NewListOffsetsRequestTopic()
	lt.Topic = topic
	lp := kmsg.NewListOffsetsRequestTopicPartition()
	lp.Partition, lp.Timestamp = partition, at
	lt.Partitions = append(lt.Partitions, lp)
	req.Topics = append(req.Topics, lt)
	return req
}

// difference is the first in which a target is not as the measure.
type difference struct {
	at   int
	step step
	name string
	what string
}

func (d *difference) String() string {
	return fmt.Sprintf("%s differs after step %d, %s: %s", d.name, d.at, d.step, d.what)
}

// run runs a script against all worlds, step by step, and stops at the first
// difference. An error is the cluster's.
func (x *generated) run(script []step) (*difference, error) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Minute)
	defer cancel()
	worlds := x.worlds()
	for _, w := range worlds {
		w.ctx = ctx
	}
	defer func() {
		var wg sync.WaitGroup
		for _, w := range worlds {
			wg.Go(w.end)
		}
		wg.Wait()
	}()
	for at, s := range slices.Concat(script, observations()) {
		switch s.Op {
		case "restart":
			for _, w := range worlds {
				if w.name != "direct" {
					w.leave(s.Replica)
				}
			}
			x.restart(s.Replica)
			continue
		case "reclass":
			x.reclass()
			continue
		}
		said := make([]string, len(worlds))
		errs := make([]error, len(worlds))
		var wg sync.WaitGroup
		for i, w := range worlds {
			wg.Go(func() {
				defer func() {
					if r := recover(); r != nil {
						err, ok := r.(error)
						if !ok {
							panic(r)
						}
						errs[i] = err
					}
				}()
				said[i] = rangeOfTimes.ReplaceAllString(w.words.text(w.do(s)), "[...]")
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, fmt.Errorf("step %d, %s: %w", at, s, err)
		}
		for i, w := range worlds[1:] {
			if said[i+1] != said[0] {
				return &difference{at, s, w.name, apart(said[i+1], said[0])}, nil
			}
		}
		if verbose() {
			x.t.Logf("%d %s\n%s", at, s, said[0])
		}
	}
	return nil, nil
}

// rangeOfTimes is what a broker takes at the moment.
var rangeOfTimes = regexp.MustCompile(`\[-?\d+, \d+\]`)

// end leaves nothing behind: scripts run by the thousand.
func (w *world) end() {
	defer w.direct.Close()
	defer w.leave(-1)
	adm := kadm.NewClient(w.direct)
	var topics, groups []string
	for i, st := range w.topics {
		if st.exists {
			topics = append(topics, w.topic(i))
		}
	}
	for i := range w.groups {
		groups = append(groups, w.group(i))
	}
	if len(topics) > 0 {
		_, _ = adm.DeleteTopics(w.ctx, topics...)
	}
	if len(groups) > 0 {
		_, _ = adm.DeleteGroups(w.ctx, groups...)
	}
}

// observations are what is asked at the end of every script.
func observations() (all []step) {
	for i := range topicsOfScripts {
		all = append(all, step{Op: "observe", Topic: i, Replica: i % 2}, step{Op: "observe", Topic: i, Replica: (i + 1) % 2, Committed: true, As: "3.6"})
	}
	for i := range groupsOfScripts {
		all = append(all, step{Op: "group", Group: i})
	}
	for i := range producersOfScripts {
		all = append(all, step{Op: "transaction", Producer: i})
	}
	return all
}

// do makes a step and says what the client sees.
func (w *world) do(s step) string {
	op, ok := operations[s.Op]
	if !ok {
		panic(fmt.Errorf("no step is called %q", s.Op))
	}
	return op(w, s)
}

var operations map[string]func(*world, step) string

func init() {
	operations = map[string]func(*world, step) string{
		"create": (*world).create, "delete": (*world).remove, "partitions": (*world).addPartitions,
		"produce": (*world).produce, "init": (*world).initProducer, "end": (*world).endTransaction, "offsets in transaction": (*world).offsetsInTransaction,
		"fetch": (*world).fetch, "offset": (*world).offset, "delete records": (*world).deleteRecords, "epoch": (*world).endOfEpoch,
		"alter": (*world).alter, "elect": (*world).elect, "reassign": (*world).reassign,
		"commit": (*world).commitOffset, "delete offset": (*world).deleteOffset, "delete group": (*world).deleteGroup, "member": (*world).member,
		"observe": (*world).observe, "group": (*world).observeGroup, "transaction": (*world).observeTransaction,
	}
}

func sortedConfigs(configs map[string]string) []string { return slices.Sorted(maps.Keys(configs)) }
