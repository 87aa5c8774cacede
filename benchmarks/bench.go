package benchmarks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Options are what a comparison is made of.
type Options struct {
	Targets  []Target // the first is what the others are compared with
	Workload Workload
	Rounds   int
	Client   string // of Clients
	Version  string // sluice's
	Command  []string
	// Progress is told what happens, a line each. May be nil.
	Progress func(line string)
	// Price turns what a target used into money, if somebody can.
	Price func(Usage) (Money, bool)
}

// MaxRounds bounds a comparison: so much is enough for any significance.
const MaxRounds = 1000

func (o *Options) validate() error {
	seen := map[string]bool{}
	for _, t := range o.Targets {
		if t.Name == "" || len(t.Name) > 40 || strings.Trim(t.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			return fmt.Errorf("target %q: a name has letters, digits, - _ and dots, at most 40", t.Name)
		}
		if seen[t.Name] {
			return fmt.Errorf("target %q is there twice", t.Name)
		}
		seen[t.Name] = true
	}
	switch {
	case len(o.Targets) == 0:
		return errors.New("there is no target to measure")
	case o.Rounds < 1 || o.Rounds > MaxRounds:
		return fmt.Errorf("%d rounds; choose 1 to %d", o.Rounds, MaxRounds)
	}
	return o.Workload.Validate()
}

// Run drives the workload against every target, round after round, and returns
// what it saw. When ctx ends it stops, cleans up, and the report says that it
// is not complete. Topics are made before the first round and deleted after the
// last.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	say := func(format string, args ...any) {
		if o.Progress != nil {
			o.Progress(fmt.Sprintf(format, args...))
		}
	}
	rep := newReport(o)
	id := make([]byte, 4)
	_, _ = rand.Read(id)
	b := &bench{Options: o, id: hex.EncodeToString(id), values: newValues(largest(o.Workload)), report: rep}
	defer b.close(say)
	for i := range o.Targets {
		p, err := b.prepare(ctx, o.Targets[i])
		if p != nil {
			b.places = append(b.places, p)
		}
		if err != nil {
			return nil, fmt.Errorf("target %s at %s: %w", o.Targets[i].Name, strings.Join(o.Targets[i].Bootstrap, ","), err)
		}
	}
	for _, p := range b.places {
		rep.Targets = append(rep.Targets, p.info)
	}
	for round := range o.Rounds {
		full := map[string]bool{} // targets that were saturated in this round
		for _, step := range o.Workload.Steps {
			// Each round begins with another target, so that none always runs
			// on what the one before it left behind.
			for i := range b.places {
				p := b.places[(round+i)%len(b.places)]
				if o.Workload.UntilFull && full[p.target.Name] {
					continue
				}
				res, err := b.turn(ctx, p, step, round)
				if ctx.Err() != nil {
					rep.Interrupted = true
					break
				}
				if err != nil {
					res.Error = err.Error()
				}
				rep.Rounds = append(rep.Rounds, res)
				full[p.target.Name] = full[p.target.Name] || res.saturated() || res.Error != ""
				say("%s", res.line(o.Rounds))
			}
		}
		if rep.Interrupted {
			say("interrupted; what is complete is reported")
			break
		}
	}
	measuring := context.WithoutCancel(ctx)
	for _, p := range b.places {
		b.weigh(measuring, p)
	}
	rep.Ended = time.Now()
	rep.finish(o.Price)
	return rep, nil
}

func largest(w Workload) (s Size) {
	for _, st := range w.Streams {
		s = max(s, st.Size)
	}
	return s
}

type bench struct {
	Options
	id     string
	values *values
	report *Report
	places []*place
	runs   uint32
}

// place is a target with its topics.
type place struct {
	target Target
	info   TargetInfo
	client *kgo.Client
	admin  *kadm.Client
	topics map[string]string // by stream
	weight float64           // bytes of its topics before they are deleted
}

// prepareTimeout is for few partitions; a busy cluster takes this longer for
// each more.
const (
	prepareTimeout   = 60 * time.Second
	preparePartition = 50 * time.Millisecond
)

func (b *bench) prepare(ctx context.Context, t Target) (*place, error) {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout+time.Duration(b.Workload.Partitions)*preparePartition)
	defer cancel()
	if err := reach(ctx, t); err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(t.options()...)
	if err != nil {
		return nil, err
	}
	p := &place{target: t, client: client, admin: kadm.NewClient(client), topics: map[string]string{}}
	meta, err := p.admin.BrokerMetadata(ctx)
	if err != nil {
		return p, err
	}
	p.info = TargetInfo{Target: t, ClusterID: meta.Cluster}
	for _, id := range meta.Brokers.NodeIDs() {
		if id < 1<<20 { // the others are faces of the same brokers, as sluice shows them
			p.info.Brokers++
		}
	}
	// An embedded Kafka looks like a version that it is not.
	if versions, err := p.admin.ApiVersions(ctx); err == nil && !t.InProcess {
		for _, v := range versions.Sorted() {
			if v.Err == nil {
				p.info.Kafka = v.VersionGuess()
				break
			}
		}
	}
	replication := b.Workload.Replication
	if replication == 0 {
		replication = min(3, max(1, p.info.Brokers))
	}
	p.info.Replication = replication
	configs := map[string]*string{}
	for k, v := range b.Workload.TopicConfig {
		configs[k] = &v
	}
	for _, s := range b.Workload.Streams {
		pattern := t.Topic
		if s.LowLatency && t.LowTopic != "" {
			pattern = t.LowTopic
		}
		if strings.Count(pattern, "*") != 1 {
			return p, fmt.Errorf("topic name %q: one asterisk stands for what is unique", pattern)
		}
		name := strings.Replace(pattern, "*", b.id+"-"+t.Name+"-"+s.Name, 1)
		if _, err := p.admin.CreateTopic(ctx, int32(b.Workload.Partitions), int16(replication), configs, name); err != nil {
			return p, fmt.Errorf("creating topic %s: %w", name, err)
		}
		p.topics[s.Name] = name
		if err := b.awaitLeaders(ctx, p, name); err != nil {
			return p, err
		}
	}
	return p, nil
}

const reachTimeout = 5 * time.Second

// reach is nil when one of the addresses can be connected to: a client would go
// on trying, and not say why.
func reach(ctx context.Context, t Target) error {
	var errs []error
	for _, addr := range t.Bootstrap {
		c, err := (&net.Dialer{Timeout: reachTimeout}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return c.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// awaitLeaders waits until all brokers know the topic: they learn of it one
// after the other.
func (b *bench) awaitLeaders(ctx context.Context, p *place, topic string) error {
	for {
		listed, err := p.admin.ListEndOffsets(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err == nil && len(listed[topic]) == b.Workload.Partitions {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("topic %s has no leaders: %w", topic, err)
		}
	}
}

// turn is one run.
func (b *bench) turn(ctx context.Context, p *place, step Step, round int) (Round, error) {
	b.runs++
	out := Round{Round: round + 1, Step: step.Name, Target: p.target.Name, Started: time.Now()}
	r := &run{target: p.target, client: b.Client, work: b.Workload, id: b.runs, values: b.values, admin: p.admin}
	for _, s := range b.Workload.at(step) {
		r.flows = append(r.flows, &flow{Stream: s, topic: p.topics[s.Name]})
	}
	m, err := startMeter(ctx, p.target)
	if err != nil {
		return out, fmt.Errorf("reading metrics: %w", err)
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	if m != nil {
		go m.follow(following)
	}
	out.Streams, out.Generator, err = r.drive(ctx, fmt.Sprintf("sluice-bench-%s-%d", b.id, b.runs))
	if err != nil {
		return out, err
	}
	if m != nil {
		if out.Proxy, err = m.since(ctx); err != nil {
			return out, fmt.Errorf("reading metrics: %w", err)
		}
		gb := 0.0
		for _, s := range out.Streams {
			gb += float64(s.bytes+s.delivered) / 1e9
		}
		if gb > 0 {
			out.Proxy.CPUSecondsPerGB = out.Proxy.CPUSeconds / gb
		}
	}
	return out, nil
}

// weigh asks how much Kafka stores of a target's topics.
func (b *bench) weigh(ctx context.Context, p *place) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// Of all topics: asked for some, the client would ask who leads them, which
	// for a diskless topic is not who has its log.
	dirs, err := p.admin.DescribeAllLogDirs(ctx, nil)
	if err != nil {
		b.report.Notes = append(b.report.Notes, fmt.Sprintf("%s: Kafka does not tell its sizes: %v", p.target.Name, err))
		return
	}
	// One replica's bytes: of each partition the largest, for others may lag.
	largest := map[string]map[int32]int64{}
	dirs.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(part kadm.DescribedLogDirPartition) {
			if largest[part.Topic] == nil {
				largest[part.Topic] = map[int32]int64{}
			}
			largest[part.Topic][part.Partition] = max(largest[part.Topic][part.Partition], part.Size)
		})
	})
	for _, t := range p.topics {
		for _, size := range largest[t] {
			p.weight += float64(size)
		}
	}
	for i := range b.report.Targets {
		if b.report.Targets[i].Name == p.target.Name {
			b.report.Targets[i].KafkaBytes = p.weight
		}
	}
}

// close deletes the topics, also after an interruption.
func (b *bench) close(say func(string, ...any)) {
	for _, p := range b.places {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		for _, name := range p.topics {
			if _, err := p.admin.DeleteTopic(ctx, name); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
				say("topic %s could not be deleted, so it stays on %s: %v", name, p.target.Name, err)
			}
		}
		cancel()
		p.client.Close()
	}
}
