package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/gc"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/retention"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/upkeep"
)

func newGC() *cobra.Command {
	var path string
	var dryRun, acceptGone, asJSON bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete objects to which no log refers any more",
		Long: `Looks once at every object of every store, asks all brokers where their logs
begin and end, and deletes the objects to which no log can refer. Replicas do
the same in the background (gc.enabled); this is for looking, and for clusters
where they do not.

It takes several runs until something is deleted: a log's end has to be noted
twice, the log has to begin there later, and that has to be so for gc.grace.
Whatever is not certain keeps objects, and is named: a broker that does not
answer, a replica that is not in sync, a topic that may not be described.

Then it cuts the logs of diskless topics to retention.bytes of original bytes
(retention.enabled), which replicas do in the background as well.

--dry-run deletes nothing, notes nothing, and prints every object, what becomes
of it, and why. Audit objects are never deleted.

Exit code: 0 when the pass was whole, 1 when it was not; then nothing was deleted
after what went wrong.`,
		Example: "  sluice gc -c sluice.yaml --dry-run\n  sluice gc -c sluice.yaml --json | jq '.[].deleted'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			log, err := newLogger(cfg.Log, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			g := &gcRun{cfg: cfg, log: log, out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), dryRun: dryRun, acceptGone: acceptGone, json: asJSON}
			return g.run(cmd.Context())
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "delete nothing; say what becomes of every object, and why")
	cmd.Flags().BoolVar(&acceptGone, "accept-gone", false, "believe that most topics have been deleted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: one report for each store, with --dry-run also its objects, and one of retention.bytes")
	return cmd
}

type gcRun struct {
	cfg                      *config.Config
	log                      zerolog.Logger
	out, errs                io.Writer
	dryRun, acceptGone, json bool
}

// gcResult is one store's pass. The JSON names are stable.
type gcResult struct {
	*gc.Report
	Objects []gc.Object `json:"objects,omitempty"` // with --dry-run
	Error   string      `json:"error,omitempty"`
	// Of no store, and alone: what was done about retention.bytes.
	Retention *retention.Report `json:"retention,omitempty"`
}

func (g *gcRun) run(ctx context.Context) error {
	access, err := upkeep.OpenCluster(ctx, g.cfg)
	if err != nil {
		return err
	}
	defer access.Close()
	var results []gcResult
	failed := false
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Stores)) {
		r := g.store(ctx, name, access.Cluster)
		failed = failed || r.Error != ""
		results = append(results, r)
		if !g.json {
			g.print(r)
		}
	}
	if g.cfg.Retention.Enabled {
		r := g.retention(ctx, access)
		failed = failed || r.Error != ""
		results = append(results, r)
		if !g.json {
			g.printRetention(r)
		}
	}
	if g.json {
		if err := printJSON(g.out, results); err != nil {
			return err
		}
	}
	if failed {
		return errReported
	}
	return nil
}

// gcGets of one store at a time.
const gcGets = 16

func (g *gcRun) store(ctx context.Context, name string, cluster *lowlatency.Cluster) gcResult {
	var result gcResult
	store, err := server.OpenStore(g.cfg.Stores[name], gcGets)
	if err != nil {
		return gcResult{Report: &gc.Report{Store: name}, Error: err.Error()}
	}
	opt := server.CollectorOptions(g.cfg.GC, name, objstore.NewRetrying(store, 3), cluster, g.log)
	opt.Concurrency, opt.DryRun, opt.AcceptGone = gcGets, g.dryRun, g.acceptGone
	bar := newBar(g.errs)
	looked, shown := 0, time.Now()
	opt.Explain = func(o gc.Object) {
		if looked++; time.Since(shown) > 200*time.Millisecond {
			shown = time.Now()
			bar.say(fmt.Sprintf("store %s: %d objects looked at", name, looked))
		}
		switch {
		case !g.dryRun:
		case g.json:
			result.Objects = append(result.Objects, o)
		default:
			fmt.Fprintln(g.out, explained(o))
		}
	}
	result.Report, err = gc.New(opt).Pass(ctx)
	bar.clear()
	if err != nil {
		result.Error = err.Error()
	}
	return result
}

// retention cuts logs to retention.bytes, or says what it would cut.
func (g *gcRun) retention(ctx context.Context, access *upkeep.Access) gcResult {
	r, err := g.cut(ctx, access)
	result := gcResult{Retention: r}
	if err != nil {
		result.Error = err.Error()
	}
	return result
}

func (g *gcRun) cut(ctx context.Context, access *upkeep.Access) (*retention.Report, error) {
	rules, err := g.cfg.Router()
	if err != nil {
		return nil, err
	}
	if err := access.OpenStores(ctx, g.cfg); err != nil {
		return nil, err
	}
	opt := server.RetentionOptions(g.cfg.Retention, access.Cluster, access.Tier, func() *router.Router { return rules })
	opt.DryRun = g.dryRun
	return retention.New(opt).Pass(ctx)
}

func (g *gcRun) printRetention(result gcResult) {
	if r := result.Retention; r != nil {
		did := "cut"
		if g.dryRun {
			did = "would cut"
		}
		for _, c := range r.Cuts {
			fmt.Fprintf(g.out, "%s %s-%d: offsets %d to %d go; from there on it holds %s of original bytes, retention.bytes is %s\n",
				did, c.Topic, c.Partition, c.From, c.To, humanize.IBytes(uint64(c.Kept)), humanize.IBytes(uint64(c.Limit)))
		}
		fmt.Fprintf(g.out, "retention.bytes: %d diskless topics have it, %d partitions, %s of logs read; %s %d; took %v\n",
			r.Topics, r.Partitions, humanize.IBytes(uint64(r.Read)), did, len(r.Cuts), r.Took.Round(time.Millisecond))
		for _, d := range r.DoubtList() {
			fmt.Fprintln(g.out, "not certain:", d)
		}
	}
	if result.Error != "" {
		fmt.Fprintln(g.errs, "sluice: retention.bytes:", result.Error)
	}
}

func explained(o gc.Object) string {
	fate := "keep"
	if o.Reason == gc.Dead {
		fate = "delete"
	}
	line := fmt.Sprintf("%-6s  %s  %s  %s  %s", fate, o.Key, humanize.IBytes(uint64(o.Bytes)), o.Time.UTC().Format(time.DateTime), o.Why)
	if o.Partition != nil {
		line += fmt.Sprintf(" (%s-%d", o.Topic, *o.Partition)
		if o.Settled != nil {
			line += ", settled up to " + o.Settled.UTC().Format(time.DateTime)
		}
		line += ")"
	}
	return line
}

// reasonsInWords are in the order of printing.
var reasonsInWords = []struct {
	reason gc.Reason
	words  string
}{
	{gc.Dead, "nothing refers to them"},
	{gc.Grace, "nothing refers to them, but not for long enough"},
	{gc.Retained, "a log may still hold records of their time"},
	{gc.Young, "too young to tell"},
	{gc.Unseen, "a log has not been looked at twice yet"},
	{gc.Doubt, "something about a log is not certain; see below"},
	{gc.Needed, "readers need them to find others"},
	{gc.Audit, "audit: never deleted, for their lock cannot be asked about"},
	{gc.Unreadable, "cannot be read"},
	{gc.Unknown, "not sluice's: never touched"},
}

func (g *gcRun) print(r gcResult) {
	fmt.Fprintf(g.out, "store %s: %d objects, %s\n", r.Store, r.Listed.Objects, humanize.IBytes(uint64(r.Listed.Bytes)))
	w := tabwriter.NewWriter(g.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, in := range reasonsInWords {
		if c := r.Found[in.reason]; c.Objects > 0 {
			fmt.Fprintf(w, "%d\t%s\t  %s\n", c.Objects, humanize.IBytes(uint64(c.Bytes)), in.words)
		}
	}
	_ = w.Flush()
	if !r.DryRun {
		fmt.Fprintf(g.out, "deleted %d objects, %s\n", r.Deleted.Objects, humanize.IBytes(uint64(r.Deleted.Bytes)))
	}
	fmt.Fprintf(g.out, "asked about %d topics, %d checkpoints; requests: %d GET, %d LIST, %d PUT, %d DELETE; took %v\n",
		r.Topics, r.Checkpoints, r.Requests.Gets, r.Requests.Lists, r.Requests.Puts, r.Requests.Deletes, r.Took.Round(time.Millisecond))
	for _, d := range r.DoubtList() {
		fmt.Fprintln(g.out, "not certain:", d)
	}
	if len(r.Unread) > 0 {
		fmt.Fprintln(g.out, "cannot be read:", strings.Join(r.Unread, ", "))
	}
	if r.Error != "" {
		fmt.Fprintln(g.errs, "sluice:", r.Error)
	}
}
