package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
	"github.com/sluice-kafka/sluice/upkeep"
)

const drainHelp = `Tells whether topics are out of the diskless tier. A topic leaves by its class: its
next batch is inline, and what is in objects goes as retention removes it. So there
are two questions: does the configuration still lead to a diskless class (then the
line to change is named), and how many placeholders are left in the logs, until when?

Samples of the logs answer the second while they find some; --exact counts. That
none is left is never said by samples: the logs are then walked from end to end.
With --wait, a cluster that does not answer is asked again; what it refuses, and a
topic that there is not, end the command.

It changes nothing. Where retention takes too long, ` + "`sluice copy`" + ` writes the topic,
payloads resolved, to a plain one. sluice does not rewrite a log in place: offsets
would be others, and consumers' positions with them.

Exit codes: 0 the topics are out, and need no object; 1 not yet; 2 it is not known.`

// drainRow is one topic as `sluice drain` shows it. The JSON names are stable.
type drainRow struct {
	Topic   string          `json:"topic"`
	Out     bool            `json:"out"` // class not diskless, and no placeholder left
	Class   string          `json:"class"`
	Tier    string          `json:"tier"`
	Rule    string          `json:"rule"`
	Line    int             `json:"line,omitempty"`
	Change  string          `json:"change,omitempty"` // what to do about the class
	Sampled *server.LogLook `json:"sampled"`          // what samples show
	Exact   *upkeep.Remains `json:"exact,omitempty"`  // what a walk has counted
	Error   string          `json:"error,omitempty"`

	diskless bool
	err      error
}

// firstDrainPause is before --wait asks again a cluster that did not answer; it
// doubles, up to --every.
const firstDrainPause = time.Second

var errNoTopic = errors.New("no topic matches")

// lasting reports whether an error stays until somebody does something about it.
func lasting(err error) bool {
	for _, e := range []error{errNoTopic, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func newDrain() *cobra.Command {
	var path string
	var exact, wait, asJSON bool
	var every time.Duration
	var fetches float64
	cmd := &cobra.Command{
		Use:     "drain TOPIC-PATTERN...",
		Short:   "Tell whether topics are out of the diskless tier, and what is left",
		Long:    drainHelp,
		Example: "  sluice drain -c sluice.yaml otel-logs\n  sluice drain -c sluice.yaml 'otel-*' --exact --json\n  sluice drain -c sluice.yaml otel-logs --wait && echo out",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return unknown(usage(cmd, errors.New("which topics shall leave?")))
			}
			if every < time.Second {
				return unknown(usage(cmd, fmt.Errorf("--every %v: choose 1s or more", every)))
			}
			if !(fetches >= 0) {
				return unknown(usage(cmd, fmt.Errorf("--fetches %v: it is a number from 0", fetches)))
			}
			topics, err := patterns(args)
			if err != nil {
				return unknown(err)
			}
			// pause is false when somebody has ended the command meanwhile.
			pause := func(d time.Duration, format string, args ...any) bool {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
				select {
				case <-time.After(d):
					return true
				case <-cmd.Context().Done():
					return false
				}
			}
			again := firstDrainPause
			for {
				// Read anew each time: somebody may change the class meanwhile.
				cfg, err := config.Load(path)
				if err != nil {
					return unknown(err)
				}
				rows, err := drain(cmd.Context(), cfg, topics, exact, fetches)
				if err != nil {
					if !wait || lasting(err) || cmd.Context().Err() != nil || !pause(again, "%v; trying again in %v.", err, again) {
						return unknown(err)
					}
					again = min(2*again, every)
					continue
				}
				again = firstDrainPause
				left, failed, hopeless := 0, 0, false
				for _, r := range rows {
					switch {
					case r.Error != "":
						failed++
						hopeless = hopeless || lasting(r.err)
					case !r.Out:
						left++
					}
				}
				if wait && !hopeless && left+failed > 0 && pause(every, "%d of %d topics are out.", len(rows)-left-failed, len(rows)) {
					continue
				}
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), rows)
				} else {
					printDrain(cmd.OutOrStdout(), cfg.File, rows)
				}
				switch {
				case err != nil:
					return unknown(err)
				case left > 0:
					return exitCode{exitFound, errReported}
				case failed > 0:
					return unknown(errReported)
				}
				return nil
			}
		},
	}
	configFlag(cmd, &path)
	fl := cmd.Flags()
	fl.BoolVar(&exact, "exact", false, "walk the logs from end to end, and count")
	fl.BoolVar(&wait, "wait", false, "until all are out")
	fl.DurationVar(&every, "every", time.Minute, "with --wait: how often to look")
	fl.Float64Var(&fetches, "fetches", 100, "requests a second to the brokers, of up to 1 MiB each; 0 is unbounded")
	fl.BoolVar(&asJSON, "json", false, "print JSON; its names are stable")
	return cmd
}

func drain(ctx context.Context, cfg *config.Config, topics []router.Pattern, exact bool, fetches float64) ([]drainRow, error) {
	routes, err := cfg.Router()
	if err != nil {
		return nil, err
	}
	access, err := upkeep.OpenCluster(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer access.Close()
	listed, err := kadm.NewClient(access.Cluster.Client()).ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for topics: %w", err)
	}
	var names []string
	for _, p := range topics {
		some := false
		for _, name := range listed.Names() {
			some = some || p.Match(name)
		}
		if !some {
			return nil, fmt.Errorf("%w %q that this principal may see", errNoTopic, p)
		}
	}
	for _, name := range listed.Names() {
		for _, p := range topics {
			if p.Match(name) {
				names = append(names, name)
				break
			}
		}
	}
	looks, err := server.LookIntoLogs(ctx, access.Cluster, names, looksAtATime, upkeep.Pace(fetches))
	if err != nil {
		return nil, err
	}
	rows := make([]drainRow, 0, len(names))
	for _, name := range names {
		// Of a topic that is compacted now the class counts: it may not be for ever.
		placed := rowOf(name, 0, routes.Place(name, tiers.TopicFacts{Known: true}))
		row := drainRow{Topic: name, Class: placed.Class, Tier: placed.Tier, Rule: placed.Rule, Line: placed.Line, Sampled: looks[name]}
		row.diskless = placed.Tier == tiers.Diskless.String()
		if row.diskless {
			row.Change = fmt.Sprintf("give the rule %s, line %d, a low-latency class, or put a rule for %s before it: - { match: %q, class: operational }", row.Rule, row.Line, name, name)
			if row.Line == 0 {
				row.Change = fmt.Sprintf("change default_class, or add a rule: - { match: %q, class: operational }", name)
			}
		}
		if exact || row.Sampled.Placeholders == 0 {
			remains, err := access.Remains(ctx, name, fetches)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				row.Error, row.err = err.Error(), err
			} else {
				row.Exact = &remains
				row.Out = remains.Placeholders == 0 && !row.diskless
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func printDrain(out io.Writer, file string, rows []drainRow) {
	left := false
	for _, r := range rows {
		switch {
		case r.Error != "":
			fmt.Fprintf(out, "%s: its logs cannot be walked: %s\n", r.Topic, r.Error)
		case r.Out:
			fmt.Fprintf(out, "%s: out. Class %s is not diskless, and no log of it holds a placeholder.\n", r.Topic, r.Class)
		default:
			left = true
			fmt.Fprintf(out, "%s: not out yet.\n", r.Topic)
		}
		if r.Change != "" {
			fmt.Fprintf(out, "  class %s is diskless, so new batches still go to objects. In %s: %s\n", r.Class, file, r.Change)
		}
		switch {
		case r.Exact != nil && r.Exact.Placeholders > 0:
			fmt.Fprintf(out, "  %s of %s (%s) in partitions %v; the last was written %s\n", counted(r.Exact.Placeholders, "placeholder"), counted(r.Exact.Records, "record"),
				humanize.IBytes(uint64(r.Exact.Bytes)), r.Exact.Partitions, when(r.Exact.Last))
			if r.Sampled.Last != nil {
				fmt.Fprintf(out, "  ages out: %s\n", agesOut(r.Sampled))
			}
		case r.Sampled.Placeholders > 0:
			fmt.Fprintf(out, "  %d of %d samples of its logs are placeholders; the last that was found was written %s, and ages out: %s\n", r.Sampled.Placeholders, r.Sampled.Sampled, when(r.Sampled.Last), agesOut(r.Sampled))
		case r.Exact != nil && r.diskless:
			fmt.Fprintln(out, "  no log of it holds a placeholder now")
		}
	}
	if left {
		fmt.Fprintln(out, "Retention removes placeholders. Where that takes too long, `sluice copy` writes a topic, payloads resolved, to a plain one.")
	}
}
