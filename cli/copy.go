package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/upkeep"
)

const copyHelp = `Writes topics' records to plain topics of the same or another cluster: payloads
resolved, in the order of each partition, with keys, values, headers, timestamps
and compression kept. It is the way out, and the way to restore. What a consumer of
isolation read_committed sees is copied; markers and aborted records are not, so
offsets may differ: --offsets-map writes down which became which.

A target that does not exist is made with the source's partitions, replicas and
configuration. Nobody else may write to it meanwhile.

It may be interrupted, or killed, at any time: --resume goes on, and no record is
lost or doubled. For that, its progress is committed in the target cluster, as
offsets of the group sluice-copy-TARGET. It takes READ on the source, DESCRIBE_CONFIGS
to make a target as it is, and on the target cluster CREATE, WRITE, READ and
DESCRIBE_CONFIGS on the target, READ on that group, and IDEMPOTENT_WRITE before
Kafka 3.0.

With --follow, when one partition cannot be copied any more, all of it ends.

Without --to the target is a topic of the same cluster. --to names brokers, or a
sluice. Exit codes: 0 all of it was copied, up to where the source ended at the
beginning (with --follow: it was interrupted and everything is in order), 1 not.`

// copyFlags are what `sluice copy` was called with.
type copyFlags struct {
	path, to, toTopic, prefix, offsetsMap, rate string
	resume, follow, skip, asJSON                bool
	replication                                 int
	target                                      benchFlags // how to reach it
}

func newCopy() *cobra.Command {
	var f copyFlags
	cmd := &cobra.Command{
		Use:   "copy TOPIC...",
		Short: "Copy topics, payloads resolved, to plain topics: the way out",
		Long:  copyHelp,
		Example: "  sluice copy -c sluice.yaml otel-logs --to-topic otel-logs-plain\n" +
			"  sluice copy -c sluice.yaml otel-logs otel-traces --to other:9092 --offsets-map offsets.jsonl\n" +
			"  sluice copy -c sluice.yaml otel-logs --to other:9092 --resume --follow",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd, errors.New("which topics are to be copied?"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	configFlag(cmd, &f.path)
	fl := cmd.Flags()
	fl.StringVar(&f.to, "to", "", "host:port[,host:port...] of the target cluster; default: the same cluster")
	fl.StringVar(&f.toTopic, "to-topic", "", "name of the target, when one topic is copied; default: the source's")
	fl.StringVar(&f.prefix, "prefix", "", "put before the source's name to get the target's")
	fl.StringVar(&f.offsetsMap, "offsets-map", "", "add to this file which offset became which, as JSON lines")
	fl.BoolVar(&f.resume, "resume", false, "go on with what an earlier call has begun")
	fl.BoolVar(&f.follow, "follow", false, "go on with what is written meanwhile, until it is interrupted")
	fl.BoolVar(&f.skip, "skip-unreadable", false, "leave out batches that are in no store any more, and say which")
	fl.IntVar(&f.replication, "replication", 0, "replicas of targets that are made; default: the source's")
	fl.StringVar(&f.rate, "rate", "0", "bytes a second, for example 64MiB; 0 is unbounded")
	fl.BoolVar(&f.asJSON, "json", false, "print the summary as JSON; its names are stable")
	fl.BoolVar(&f.target.tls, "tls", false, "speak TLS to --to")
	fl.StringVar(&f.target.ca, "tls-ca", "", "PEM file of the authorities to trust; implies --tls")
	fl.StringVar(&f.target.sasl, "sasl", "", "log in to --to with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
	fl.StringVar(&f.target.username, "username", "", "for --sasl")
	fl.StringVar(&f.target.passwordFile, "password-file", "", "for --sasl")
	cmd.MarkFlagsMutuallyExclusive("to-topic", "prefix")
	return cmd
}

func (f *copyFlags) run(cmd *cobra.Command, topics []string) error {
	opt := upkeep.CopyOptions{Resume: f.resume, Follow: f.follow, SkipUnreadable: f.skip, Replication: f.replication}
	if f.toTopic != "" && len(topics) > 1 {
		return usage(cmd, errors.New("--to-topic is for one topic; --prefix is for several"))
	}
	seen := map[string]bool{}
	for _, t := range topics {
		if seen[t] {
			return usage(cmd, fmt.Errorf("topic %s is named twice", t))
		}
		seen[t] = true
		to := f.prefix + t
		if f.toTopic != "" {
			to = f.toTopic
		}
		opt.Topics = append(opt.Topics, upkeep.CopyTopic{From: t, To: to})
	}
	if f.replication < 0 || f.replication > 1<<15-1 {
		return usage(cmd, fmt.Errorf("--replication %d: choose 1 or more", f.replication))
	}
	var err error
	if opt.BytesPerSecond, err = byteRate("--rate", f.rate); err != nil {
		return usage(cmd, err)
	}
	security, err := f.target.security()
	if err != nil {
		return usage(cmd, err)
	}
	cfg, err := config.Load(f.path)
	if err != nil {
		return err
	}
	reach, err := server.ClusterOptions(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if f.to != "" {
		reach = lowlatency.Options{Bootstrap: strings.Split(f.to, ","), TLS: security.tls, SASL: security.sasl, Logger: zerolog.Nop(), Metrics: prometheus.NewRegistry()}
		for _, a := range reach.Bootstrap {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				return usage(cmd, fmt.Errorf("--to %s: %q is not host:port", f.to, a))
			}
		}
	} else if security.tls != nil || security.sasl != nil {
		return usage(cmd, errors.New("--tls and --sasl are for --to; the same cluster is reached as the configuration says"))
	}
	ctx := cmd.Context()
	access, err := upkeep.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer access.Close()
	if opt.Target, err = lowlatency.New(reach); err != nil {
		return err
	}
	defer opt.Target.Close()
	if f.offsetsMap != "" {
		if opt.OffsetsMap, err = upkeep.OpenOffsetsMap(f.offsetsMap); err != nil {
			return fmt.Errorf("--offsets-map: %w", err)
		}
	}
	bar := newBar(cmd.ErrOrStderr())
	opt.Progress = func(p upkeep.CopyProgress) {
		bar.show(p.Done, max(p.Of, p.Done), fmt.Sprintf("%s records, %s", humanize.Comma(p.Records), humanize.IBytes(uint64(p.Bytes))))
	}
	report, err := access.Copy(ctx, opt)
	bar.clear()
	if report == nil {
		return err
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted; the same command with --resume goes on")
	}
	if f.asJSON {
		return errors.Join(err, printJSON(cmd.OutOrStdout(), report))
	}
	printCopy(cmd.OutOrStdout(), report)
	return err
}

func printCopy(out io.Writer, r *upkeep.CopyReport) {
	for _, t := range r.Created {
		fmt.Fprintf(out, "Topic %s was made.\n", t)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(out, n+".")
	}
	for _, p := range r.Topics {
		fmt.Fprintf(out, "%s-%d to %s: %s written", p.Topic, p.Partition, p.To, counted(p.Records, "record"))
		if p.Verified > 0 {
			fmt.Fprintf(out, ", %s found there and alike", humanize.Comma(p.Verified))
		}
		fmt.Fprintf(out, "; up to offset %d, which is %d there\n", p.Next, p.At)
		for _, s := range p.Skipped {
			fmt.Fprintf(out, "  left out: offsets %d to %d: %s\n", s.First, s.Last, s.Why)
		}
		if p.Error != "" {
			fmt.Fprintf(out, "  stopped: %s\n", p.Error)
		}
	}
	fmt.Fprintf(out, "%s, %s of batches.\n", counted(r.Records, "record"), humanize.IBytes(uint64(r.Bytes)))
}
