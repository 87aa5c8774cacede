package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/admin"
	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/compactor"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/upkeep"
)

const compactHelp = `Turns WAL objects, in which the batches of all partitions lie as they came, into
segments, in which they lie by partition: a replay then reads each byte about once.
Replicas do the same in the background (compaction.enabled); this is for doing it
elsewhere, or at once. It shares the work with all others that do it, may be
interrupted or killed at any time, and deletes no WAL object.

The limits are those of the section compaction in the configuration. With --once it
ends when everything that is older than compaction.min_age is compacted, and merged if
compaction.merge says so. Exit codes
of --once: 0 it is, but for what others work on, 1 it is not.`

func newCompact() *cobra.Command {
	var path, metrics string
	var once bool
	cmd := &cobra.Command{
		Use:   "compact",
		Short: "Compact WAL objects into segments, in a process of its own",
		Long:  compactHelp,
		Example: "  sluice compact -c sluice.yaml --metrics :19645\n" +
			"  sluice compact -c sluice.yaml --once",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return compact(cmd, path, metrics, once) },
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&once, "once", false, "end when everything that is old enough is compacted")
	cmd.Flags().StringVar(&metrics, "metrics", "", "host:port of /metrics; default: none")
	return cmd
}

func compact(cmd *cobra.Command, path, metrics string, once bool) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	log, err := newLogger(cfg.Log, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if len(cfg.Stores) == 0 {
		return errors.New("the configuration has no stores: there is nothing to compact")
	}
	server.LimitMemory(cfg.Limits)
	ctx := cmd.Context()
	access, err := upkeep.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer access.Close()
	registry := prometheus.NewRegistry()
	if metrics != "" {
		s, err := admin.Start(metrics, registry, func() admin.Health { return admin.Health{Ready: true} }, log)
		if err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
		defer func() { _ = s.Close(context.WithoutCancel(ctx)) }()
	}
	bar := newBar(cmd.ErrOrStderr())
	var turn sync.Mutex
	meters := compactor.NewMetrics(registry)
	var compactors []*compactor.Compactor
	names := slices.Sorted(maps.Keys(access.Stores))
	for _, name := range names {
		total := int64(0)
		opt := compactor.Options{
			Store: access.Stores[name].Store, Name: name, Retention: access.Cluster.Retention, Turn: &turn,
			Limits: server.CompactionLimits(cfg.Compaction), Logger: log, Metrics: meters,
		}
		if once {
			opt.Progress = func(p compactor.Progress) {
				total = max(total, int64(p.Objects))
				bar.show(int64(p.Objects), max(total, int64(p.Backlog)), fmt.Sprintf("store %s, %s: %s read, %s written", name, p.Window.Format("2006-01-02 15:04"), humanize.IBytes(uint64(p.Read)), humanize.IBytes(uint64(p.Written))))
			}
		}
		compactors = append(compactors, compactor.New(opt))
	}
	if !once {
		var all sync.WaitGroup
		for _, c := range compactors {
			all.Go(func() { c.Run(ctx) })
		}
		all.Wait()
		return nil
	}
	for i, c := range compactors {
		name := names[i]
		started := time.Now()
		err := c.Pass(ctx)
		bar.clear()
		p := c.Progress()
		fmt.Fprintf(cmd.OutOrStdout(), "Store %s: %s seen, %s read, %s written in %s, %v.%s\n", name, counted(int64(p.Objects), "WAL object"),
			humanize.IBytes(uint64(p.Read)), humanize.IBytes(uint64(p.Written)), counted(int64(p.Windows), "window"), time.Since(started).Round(time.Millisecond), waiting(p))
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted; what was done stays done")
		case err != nil:
			return fmt.Errorf("store %s: %w", name, err)
		}
	}
	return nil
}

func waiting(p compactor.Progress) string {
	var notes []string
	if p.Merged > 0 {
		notes = append(notes, fmt.Sprintf("%s merged into larger segments.", counted(int64(p.Merged), "window")))
	}
	if p.Waiting > 0 {
		notes = append(notes, fmt.Sprintf("Others work on %s.", counted(int64(p.Waiting), "window")))
	}
	if p.Damaged > 0 {
		notes = append(notes, fmt.Sprintf("%s left as they are: see the log.", counted(int64(p.Damaged), "damaged object")))
	}
	if len(notes) == 0 {
		return ""
	}
	return " " + strings.Join(notes, " ")
}
