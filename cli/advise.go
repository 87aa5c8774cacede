package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/cost"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
)

const adviseHelp = `Watches a cluster for a while, and proposes a latency class for each topic, with
the reason and the money, as YAML to paste into the configuration. It changes
nothing, and reads from brokers only: offsets, sizes of logs, retention,
cleanup.policy, consumer groups, and a few batches of each topic.

A topic is proposed for a diskless class when that saves --min-saving a month at
least: telemetry when somebody reads at its end, replay when nobody does. Compacted
and internal topics, topics with tiered storage, and those that are diskless already
stay as they are. What it proposes is arithmetic (sluice cost prints it); whether a
topic may wait for some hundred milliseconds only you know.

--bootstrap looks at a cluster without a configuration; for TLS or SASL use -c.
Name the brokers' own address, not sluice's.`

func newAdvise() *cobra.Command {
	var f costFlags
	var path string
	var bootstrap []string
	var during time.Duration
	var least float64
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "advise",
		Short:   "Watch a cluster and propose a class for each topic, with the money",
		Long:    adviseHelp,
		Example: "  sluice advise -c sluice.yaml --watch 5m\n  sluice advise --bootstrap kafka:9092 --watch 1m > proposal.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if during < time.Second || during > 7*24*time.Hour {
				return fmt.Errorf("--watch takes from 1s to 168h, not %v", during)
			}
			if !(least >= 0) {
				return fmt.Errorf("--min-saving takes an amount from 0, not %v", least)
			}
			m, err := f.model()
			if err != nil {
				return err
			}
			a := adviser{model: m, least: least, zonesGiven: f.assumptions != "" || slices.ContainsFunc(f.assume, func(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "zones") })}
			opt := lowlatency.Options{Bootstrap: bootstrap, Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry()}
			if len(bootstrap) == 0 {
				cfg, err := config.Load(path)
				if err != nil {
					return err
				}
				if err := a.use(cfg); err != nil {
					return err
				}
				if opt, err = server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry()); err != nil {
					return err
				}
			}
			cluster, err := lowlatency.New(opt)
			if err != nil {
				return err
			}
			defer cluster.Close()
			s, err := takeSurvey(cmd.Context(), cluster, func(ctx context.Context) error {
				fmt.Fprintf(cmd.ErrOrStderr(), "Watching for %v.\n", during)
				select {
				case <-time.After(during):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			if errors.Is(err, context.Canceled) {
				return errors.New("interrupted; nothing was changed")
			}
			if errors.Is(err, errThroughSluice) {
				return fmt.Errorf("%s: %w", strings.Join(opt.Bootstrap, ", "), err)
			}
			if err != nil {
				return fmt.Errorf("asking %s: %w; `sluice check --live` looks closer", strings.Join(opt.Bootstrap, ", "), err)
			}
			r := a.advise(s)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return printAdvice(cmd.OutOrStdout(), r)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringSliceVar(&bootstrap, "bootstrap", nil, "brokers' addresses, host:port, instead of a configuration")
	cmd.Flags().DurationVar(&during, "watch", 30*time.Second, "how long to watch; a time with usual traffic says most")
	cmd.Flags().Float64Var(&least, "min-saving", 10, "what a topic has to save in a month, in the currency of the prices")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	f.register(cmd.Flags())
	cmd.MarkFlagsMutuallyExclusive("config", "bootstrap")
	return cmd
}

// adviser is what proposals depend on beside the cluster.
type adviser struct {
	model      cost.Model
	least      float64
	zonesGiven bool           // by a person
	router     *router.Router // nil without a configuration
}

func (a *adviser) use(cfg *config.Config) (err error) {
	a.model.Classes, a.model.EarlyPuts = cfg.Classes, float64(cfg.Limits.PutsPerSecond)
	a.router, err = cfg.Router()
	return err
}

// advice is what `sluice advise --json` prints. The JSON names are stable.
type advice struct {
	ClusterID string       `json:"cluster_id"`
	Watched   float64      `json:"watched_seconds"`
	Zones     int          `json:"zones"`
	Racks     int          `json:"racks"` // that brokers name; 0 is none
	Replicas  int          `json:"replicas"`
	Now       float64      `json:"proposed_topics_now_month"` // without machines
	Then      float64      `json:"proposed_topics_then_month"`
	Machines  float64      `json:"sluice_machines_month"`
	Topics    []adviceItem `json:"topics"`
	Unknown   []string     `json:"could_not_see,omitempty"`
	Notes     []string     `json:"notes,omitempty"`
	Prices    cost.Prices  `json:"prices"`
}

type adviceItem struct {
	Topic        string  `json:"topic"`
	Partitions   int     `json:"partitions"`
	BytesPerSec  float64 `json:"bytes_per_second"`
	RecordsPerS  float64 `json:"records_per_second"`
	BatchBytes   float64 `json:"batch_bytes"`
	SizeBytes    int64   `json:"log_bytes"`
	RetentionSec float64 `json:"retention_seconds"` // reckoned with
	Forever      bool    `json:"kept_forever,omitempty"`
	Groups       int     `json:"groups"`
	Lag          int64   `json:"lag_records"`       // of the nearest group with members; -1 without any
	Class        string  `json:"class,omitempty"`   // by the configuration
	Propose      string  `json:"propose,omitempty"` // "" is as it is
	Now          float64 `json:"now_month"`         // without machines
	Then         float64 `json:"then_month"`        // likewise; as diskless, also when that is not proposed
	Why          string  `json:"why"`

	stream cost.Stream
	class  tiers.Class // that it might have
}

// tailSeconds is how far behind a group may be and still read at the end.
const tailSeconds = 60

func (a *adviser) advise(s *survey) *advice {
	m := &a.model
	if s.Racks > 0 && !a.zonesGiven {
		m.Zones = float64(s.Racks)
	}
	r := &advice{ClusterID: s.ClusterID, Watched: s.Watched.Seconds(), Racks: s.Racks, Zones: int(m.Zones), Unknown: s.Unknown, Prices: m.Prices}
	for _, t := range s.Topics {
		r.Topics = append(r.Topics, a.item(t))
	}
	// The price of a topic's objects depends on who shares them. A topic that
	// does not pay is no better off with fewer others, so this ends.
	for again := true; again; {
		again = false
		replicas := a.price(r)
		r.Replicas, r.Machines = int(replicas), replicas*m.ReplicaMonth()
		for i := range r.Topics {
			if t := &r.Topics[i]; t.Propose != "" && t.Now-t.Then < max(a.least, 0.005) {
				t.Propose, again = "", true
				t.Why = fmt.Sprintf("as %s it would save %s a month only", t.class.Name, money(m.Prices.Currency, t.Now-t.Then))
				if t.Now <= t.Then {
					t.Why = fmt.Sprintf("as %s it would cost more: PUTs are paid by the piece", t.class.Name)
				}
			}
		}
	}
	for _, t := range r.Topics {
		if t.Propose != "" {
			r.Now, r.Then = r.Now+t.Now, r.Then+t.Then
		}
	}
	slices.SortStableFunc(r.Topics, func(x, y adviceItem) int {
		saves := func(t adviceItem) float64 {
			if t.Propose == "" {
				return -1
			}
			return t.Now - t.Then
		}
		switch sx, sy := saves(x), saves(y); {
		case sx > sy:
			return -1
		case sx < sy:
			return 1
		}
		return strings.Compare(x.Topic, y.Topic)
	})
	r.Notes = a.notes(s)
	return r
}

// item is a topic before it is known what it would share.
func (a *adviser) item(t seen) adviceItem {
	m := &a.model
	out := adviceItem{Topic: t.Topic, Partitions: t.Partitions, BytesPerSec: t.Bytes, RecordsPerS: t.Records, BatchBytes: t.Batch, SizeBytes: t.Size, Groups: t.Groups, Lag: t.Lag}
	diskless := false
	if a.router != nil {
		p := a.router.Place(t.Topic, tiers.TopicFacts{Known: true})
		out.Class, diskless = p.Class.Name, p.Class.Tier == tiers.Diskless
	}
	kept := t.Retention.Seconds()
	if t.Retention < 0 {
		// What is kept now is all that can be reckoned with.
		out.Forever, kept = true, 0
		if t.Bytes > 0 {
			kept = float64(t.Size) / t.Bytes
		}
	}
	if t.RetentionBytes >= 0 && t.Bytes > 0 {
		kept = min(kept, float64(t.RetentionBytes)*float64(t.Partitions)/t.Bytes)
	}
	out.RetentionSec = kept
	batch := t.Batch
	if batch == 0 {
		batch = m.BatchSize
	}
	out.stream = cost.Stream{Bytes: t.Bytes, Batches: t.Bytes / batch, Records: t.Records, Retention: kept, FanOut: float64(t.Groups), Replication: t.Replication}
	out.Now = m.Kafka(out.stream, m.FollowerFetch > 0).Total()
	switch {
	case t.Internal:
		out.Why = "internal: Kafka's own"
	case !t.Configured:
		out.Why = "its configuration could not be read"
	case t.Compacted:
		out.Why = "compacted: compaction would destroy placeholders"
	case t.Placeholders > 0 || diskless:
		out.Why = "diskless already: what brokers show are placeholders"
		if t.Placeholders == 0 {
			out.Why = "diskless already, by its rule"
		}
		out.Now = 0
	case t.Remote:
		out.Why = "tiered storage (remote.storage.enable) has it in objects; turn that off first"
	case t.Records == 0 || t.Bytes == 0:
		out.Why = "no record came in"
	case m.Inline(out.stream):
		out.Why = fmt.Sprintf("batches of %s with %.0f records are too small for placeholders", ibytes(t.Batch), t.BatchRecords)
	case t.Groups > 0 && t.Lag >= 0 && float64(t.Lag) <= tailSeconds*t.Records:
		out.Propose, out.Why = "telemetry", plural(t.Groups, "group")+", reading at the end"
	case t.Groups > 0 && t.Lag >= 0:
		out.Propose, out.Why = "replay", fmt.Sprintf("%s, the nearest %v behind", plural(t.Groups, "group"), time.Duration(float64(t.Lag)/t.Records*1e9).Round(time.Second))
	case t.Groups > 0:
		out.Propose, out.Why = "replay", plural(t.Groups, "group")+", none with members now"
	default:
		out.Propose, out.Why = "replay", "no consumer group"
	}
	if out.Propose != "" {
		out.class = m.Classes[out.Propose]
		if out.class.Tier != tiers.Diskless {
			out.Why, out.Propose = fmt.Sprintf("class %s is not diskless here", out.Propose), ""
		}
	}
	return out
}

func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// price says what each proposed topic would cost, with its share of its class's
// objects, and returns how many replicas of sluice that takes.
func (a *adviser) price(r *advice) float64 {
	m := &a.model
	var off, relayed cost.Stream
	byClass := map[string]cost.Stream{}
	for _, t := range r.Topics {
		if t.Propose == "" {
			relayed = relayed.Plus(t.stream)
			continue
		}
		off = off.Plus(t.stream)
		byClass[t.Propose] = byClass[t.Propose].Plus(t.stream)
	}
	replicas, err := m.ReplicasFor(relayed, off)
	if err != nil {
		// Larger machines, then; what they cost the person has to say.
		replicas = max(m.Zones, 2)
		if note := err.Error(); !slices.Contains(r.Unknown, note) {
			r.Unknown = append(r.Unknown, note)
		}
	}
	early := m.Early(off, replicas).Total()
	for i := range r.Topics {
		t := &r.Topics[i]
		if t.Propose == "" {
			continue
		}
		class := byClass[t.Propose]
		t.Then = m.Diskless(t.stream).Total() +
			m.Requests(t.class, class, replicas).Total()*t.stream.Bytes/class.Bytes + early*t.stream.Bytes/off.Bytes
	}
	return replicas
}

func (a *adviser) notes(s *survey) []string {
	notes := []string{
		"It cannot see what acknowledgement a producer wants (acks), nor how long a topic may wait: commands, payments and locks stay in a class like control whatever they would save, and enrichment is there for joins.",
		"Share groups, and consumers that commit no offsets to Kafka, are not seen; a group counts as one reader of the whole topic.",
		fmt.Sprintf("%v of traffic stand for a month. Batches are the last of up to %d partitions of a topic.", s.Watched.Round(time.Second), samplesPerTopic),
	}
	switch {
	case a.zonesGiven:
	case s.Racks == 0:
		notes = append(notes, fmt.Sprintf("Brokers name no rack: %.0f zones are assumed (--assume zones=).", a.model.Zones))
	case s.Racks == 1:
		notes = append(notes, "All brokers are in one zone, by their rack, so nothing is saved between zones (--assume zones= if that is wrong), and tiered storage may be cheaper: see `sluice cost --zones 1`.")
	}
	if a.model.FollowerFetch > 0 {
		notes = append(notes, "Today's cost is that with consumers that fetch in their zone; if they do not, they save more (--assume follower_fetch=false).")
	}
	var single []string
	for _, t := range s.Topics {
		if t.NoProducerID && !t.Internal {
			single = append(single, t.Topic)
		}
	}
	if len(single) > 0 {
		const shown = 5
		more := ""
		if len(single) > shown {
			more = fmt.Sprintf(" and %d more", len(single)-shown)
			single = single[:shown]
		}
		notes = append(notes, "Written without idempotence: "+strings.Join(single, ", ")+more+". Such producers may reorder batches when a class changes under load, as when a leader moves.")
	}
	return notes
}

func ibytes(v float64) string { return humanize.IBytes(uint64(max(v, 0))) }

// printAdvice prints YAML; what is for people is in comments.
func printAdvice(out io.Writer, r *advice) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "sluice advise: cluster %s, watched for %v. Nothing has been changed.\n", r.ClusterID, (time.Duration(r.Watched * float64(time.Second))).Round(time.Second))
	fmt.Fprintf(&text, "A month's cost without machines; prices of %s as of %s.\n\n", r.Prices.Of, r.Prices.AsOf)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tIN/S\tBATCH\tKEPT\tSIZE\tGROUPS\tNOW\tDISKLESS\tCLASS\tPROPOSED\tWHY")
	proposed := 0
	for _, t := range r.Topics {
		kept, batch, then, class, propose := days(t.RetentionSec), "?", "-", "-", "-"
		if t.Forever {
			kept = "for ever"
		}
		if t.BatchBytes > 0 {
			batch = ibytes(t.BatchBytes)
		}
		if t.Then > 0 {
			then = money(r.Prices.Currency, t.Then)
		}
		if t.Class != "" {
			class = t.Class
		}
		if t.Propose != "" {
			propose = t.Propose
			proposed++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", t.Topic, ibytes(t.BytesPerSec), batch, kept, ibytes(float64(t.SizeBytes)), t.Groups,
			money(r.Prices.Currency, t.Now), then, class, propose, t.Why)
	}
	_ = w.Flush()
	fmt.Fprintln(&text)
	if proposed > 0 {
		net := r.Now - r.Then - r.Machines
		fmt.Fprintf(&text, "The proposed topics: %s a month now, %s then; %s for sluice %s: ", money(r.Prices.Currency, r.Now), money(r.Prices.Currency, r.Then),
			plural(r.Replicas, "machine"), money(r.Prices.Currency, r.Machines))
		if net > 0 {
			fmt.Fprintf(&text, "saves %s.\n", money(r.Prices.Currency, net))
		} else {
			fmt.Fprintf(&text, "costs %s more than it saves, by these prices.\n", money(r.Prices.Currency, -net))
		}
	}
	for _, what := range append(slices.Clone(r.Unknown), r.Notes...) {
		fmt.Fprintln(&text, wrap(what, 98))
	}
	for line := range strings.Lines(text.String()) {
		fmt.Fprintln(out, strings.TrimRight("# "+line, " \n"))
	}
	if proposed == 0 {
		_, err := fmt.Fprintln(out, "#\n# No topic is proposed for a diskless class.")
		return err
	}
	fmt.Fprintln(out, "\n# The first rule that matches wins: put these before your own.\ntopics:")
	for _, t := range r.Topics {
		if t.Propose != "" {
			fmt.Fprintf(out, "  - { match: %q, class: %s } # saves %s a month; %s\n", t.Topic, t.Propose, money(r.Prices.Currency, t.Now-t.Then), t.Why)
		}
	}
	return nil
}

// wrap breaks lines between words.
func wrap(text string, width int) string {
	var b strings.Builder
	at := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case at == 0:
		case at+1+len(word) > width:
			b.WriteString("\n  ")
			at = 2
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	return b.String()
}

func days(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.1f d", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
	return d.Round(time.Second).String()
}
