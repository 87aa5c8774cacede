package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
)

func newTopics() *cobra.Command {
	var path string
	var asJSON, logs bool
	cmd := &cobra.Command{
		Use:   "topics",
		Short: "Show every topic's class and tier, and why",
		Long: `Lists every topic of the cluster with its latency class, the rule that matched,
the tier that its payloads go to, and why. A topic of a diskless class may still
go inline: "compacted: inline", because compaction would destroy placeholders.
Below the table stand the topics of which sluice's own principal lacks a right that
retention.bytes or the audit archive needs.

--logs also looks into the topics' logs, which may hold both kinds of batches
when a topic's class has changed: what share of some samples of each partition
are placeholders, when the last that was found was written, and when
retention.ms will have removed it. Then nothing of the topic is in objects.`,
		Example: "  sluice topics -c sluice.yaml\n  sluice topics -c sluice.yaml --json | jq '.[] | select(.tier == \"diskless\")'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			rows, err := listTopics(cmd.Context(), cfg, logs)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rows)
			}
			return printTopics(cmd.OutOrStdout(), rows)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&logs, "logs", false, "also look into the logs for placeholders")
	return cmd
}

// topicRow is one topic as `sluice topics` shows it. The JSON names are stable.
type topicRow struct {
	Topic      string `json:"topic"`
	Partitions int    `json:"partitions"`
	Class      string `json:"class"`
	Rule       string `json:"rule"` // the pattern that matched, or "default_class"
	Line       int    `json:"line,omitempty"`
	Tier       string `json:"tier"`
	Why        string `json:"why"`
	Lacks      string `json:"lacks,omitempty"` // rights that sluice's own principal needs, and what to do

	Log *server.LogLook `json:"log,omitempty"` // with --logs
}

// looksAtATime are partitions whose logs are looked into.
const looksAtATime = 16

func listTopics(ctx context.Context, cfg *config.Config, logs bool) ([]topicRow, error) {
	r, err := cfg.Router()
	if err != nil {
		return nil, err
	}
	opt, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	cluster, err := lowlatency.New(opt)
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	topics, err := kadm.NewClient(cluster.Client()).ListTopicsWithInternal(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking %s for its topics: %w; `sluice check --live` looks closer", strings.Join(cfg.Kafka.Bootstrap, ", "), err)
	}
	facts := cluster.AllFacts(ctx, topics.Names())
	rows := make([]topicRow, 0, len(topics))
	classes := make(map[string]*tiers.Class)
	for _, t := range topics.Sorted() {
		f := facts[t.Topic]
		f.Internal = f.Internal || t.IsInternal
		placed := r.Place(t.Topic, f)
		rows = append(rows, rowOf(t.Topic, len(t.Partitions), placed))
		if f.Known && !f.Internal && placed.Class.Tier == tiers.Diskless {
			classes[t.Topic] = placed.Class
		}
	}
	missing, err := missingRights(ctx, cfg, cluster, classes)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		rows[i].Lacks = missing[rows[i].Topic]
	}
	if !logs {
		return rows, nil
	}
	looks, err := server.LookIntoLogs(ctx, cluster, topics.Names(), looksAtATime, func(context.Context) error { return nil })
	if err != nil {
		return nil, err
	}
	for i := range rows {
		rows[i].Log = looks[rows[i].Topic]
	}
	return rows, nil
}

func rowOf(topic string, partitions int, p tiers.Placement) topicRow {
	row := topicRow{Topic: topic, Partitions: partitions, Class: p.Class.Name, Rule: p.Rule.Pattern, Line: p.Rule.Line, Tier: p.Tier.String(), Why: string(p.Reason)}
	if p.Rule.Index < 0 {
		row.Rule = "default_class"
	}
	return row
}

func printTopics(out io.Writer, rows []topicRow) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	title := "TOPIC\tPARTITIONS\tCLASS\tTIER\tWHY\tRULE"
	if len(rows) > 0 && rows[0].Log != nil {
		title += "\tPLACEHOLDERS\tLAST\tAGES OUT"
	}
	fmt.Fprintln(w, title)
	for _, r := range rows {
		rule := r.Rule
		if r.Line > 0 {
			rule = fmt.Sprintf("%s (line %d)", rule, r.Line)
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s", r.Topic, r.Partitions, r.Class, r.Tier, r.Why, rule)
		if r.Log != nil {
			fmt.Fprintf(w, "\t%s\t%s\t%s", shareOf(r.Log), when(r.Log.Last), agesOut(r.Log))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Lacks != "" {
			fmt.Fprintf(out, "%s: %s\n", r.Topic, r.Lacks)
		}
	}
	return nil
}

// shareOf the samples, for people.
func shareOf(l *server.LogLook) string {
	switch {
	case l.Err != "":
		return "? (" + l.Err + ")"
	case l.Sampled == 0:
		return "empty"
	}
	return fmt.Sprintf("%d of %d", l.Placeholders, l.Sampled)
}

func agesOut(l *server.LogLook) string {
	if l.Forever {
		return "never: retention.ms"
	}
	return when(l.AgesOut)
}

func when(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}
