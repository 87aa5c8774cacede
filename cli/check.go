package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/tiers"
)

func newCheck() *cobra.Command {
	var path string
	var live bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration; with --live also the brokers and the stores",
		Long: `Checks the configuration file strictly and prints every mistake at once, each
with its place and its remedy. Exit code 1 when there is any.

--live also tries what the file names, with a line for each: the brokers (reach,
credentials, versions, node ids within the ranges, ACLs and quotas that look at
client addresses, SASL mechanisms that cannot be relayed), the topics (compacted
or remote-stored ones in diskless classes, rights on them that sluice's own
principal lacks) and the stores (a put, get, range and
conditional put of a small object that is removed again), and the disk cache
(write, room). It changes nothing else, but makes the folder of a file:// store,
and that of the disk cache, when there is none.`,
		Example: "  sluice check -c sluice.yaml\n  sluice check -c sluice.yaml --live",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s is a good configuration.\n\n", path)
			summarize(out, cfg)
			if !live {
				return nil
			}
			fmt.Fprintln(out)
			return checkLive(cmd.Context(), out, cfg)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&live, "live", false, "also try the brokers and the stores")
	return cmd
}

// summarize prints what the file means: classes, rules and ports.
func summarize(out io.Writer, cfg *config.Config) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLASS\tTIER\tLINGER\tOBJECT SIZE\tSTORE")
	names := make([]string, 0, len(cfg.Classes))
	for name := range cfg.Classes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := cfg.Classes[name]
		if c.Tier != tiers.Diskless {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t-\n", name, c.Tier)
			continue
		}
		store := c.Store
		if _, ok := cfg.Stores[store]; !ok {
			store += " (not configured; no rule leads here)"
		}
		fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\n", name, c.Tier, c.Linger, size(c.ObjectSize), store)
	}
	_ = w.Flush()
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RULE\tTOPICS\tCLASS")
	for i, r := range cfg.Rules {
		fmt.Fprintf(w, "%d\t%s\t%s\n", i+1, strings.Join(r.Patterns, ", "), r.Class)
	}
	fmt.Fprintf(w, "default\teverything else\t%s\n", cfg.DefaultClass)
	_ = w.Flush()
	fmt.Fprintf(out, "\nClients bootstrap at %s; brokers %s are at %s ports %d-%d, two each.\n",
		cfg.Listen.Bootstrap, cfg.Listen.NodeIDs, cfg.Listen.Advertise, cfg.Listen.Brokers.First, cfg.Listen.Brokers.First+2*cfg.Listen.NodeIDs.Len()-1)
}

func size(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.bytes && n%unit.bytes == 0 {
			return fmt.Sprintf("%d%s", n/unit.bytes, unit.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}

// verdict of one live check.
type verdict string

const (
	good verdict = "ok  "
	warn verdict = "warn"
	fail verdict = "FAIL"
)

// report prints a line a check and remembers whether any failed.
type report struct {
	out    io.Writer
	failed int
	warned int
}

func (r *report) line(v verdict, what, detail string) {
	switch v {
	case fail:
		r.failed++
	case warn:
		r.warned++
	}
	if detail != "" {
		what += ": " + detail
	}
	fmt.Fprintf(r.out, "%s  %s\n", v, what)
}

// check prints ok, or FAIL with the error.
func (r *report) check(what string, err error) bool {
	if err != nil {
		r.line(fail, what, err.Error())
		return false
	}
	r.line(good, what, "")
	return true
}

// liveTimeout bounds each part of a live check.
const liveTimeout = 15 * time.Second

func checkLive(ctx context.Context, out io.Writer, cfg *config.Config) error {
	r := &report{out: out}
	clusterID := checkCluster(ctx, r, cfg)
	checkStores(ctx, r, cfg, clusterID)
	checkDisk(r, cfg.DiskCache)
	switch {
	case r.failed > 0:
		fmt.Fprintf(out, "\n%d failed, %d to look at.\n", r.failed, r.warned)
		return errReported
	case r.warned > 0:
		fmt.Fprintf(out, "\nNothing failed, %d to look at.\n", r.warned)
	default:
		fmt.Fprintln(out, "\nAll is well.")
	}
	return nil
}
