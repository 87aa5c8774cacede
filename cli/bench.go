package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/sluice-kafka/sluice/benchmarks"
	"github.com/sluice-kafka/sluice/config"
)

// benchFlags are what `sluice bench` was called with.
type benchFlags struct {
	targets, topics, controls, metrics []string
	config                             string
	embedded, inProcess                bool
	classes                            []string

	workload             string
	rate, size           string
	duration, warmUp     time.Duration
	rounds               int
	partitions, replicas int
	client               string
	json, html           string

	tls                              bool
	ca, sasl, username, passwordFile string

	list  bool
	print string

	cost costFlags
}

func newBench() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Compare ways to Kafka under the same load, side by side",
		Long: `Drives the same workload against several targets, in turns (ABAB...), and
compares them with the first. The load is open loop: records are due at a rate,
and latency counts from that moment, so a slow answer cannot hide the ones
behind it. A round that achieves less than 99 % of its rate is marked saturated;
"faster" is said only when a Mann-Whitney test over the rounds shows it; and the
generator watches itself and says when it was the bottleneck.

Targets are any addresses that speak Kafka, a running sluice or another proxy:
  --target direct=host:9092 --target sluice=host:19092
or what a configuration leads to, direct Kafka and each class by itself, through
the proxy that is running, or else one that is started in this process:
  -c sluice.yaml
or, for a look without any cluster, embedded parts:
  --embedded

Each target gets topics of its own, sluice-bench-*, which are deleted at the end.
Objects that a diskless class wrote stay in its store until garbage collection
finds that nothing refers to them; with -c it is said where. The exit code is 1
when records were lost, doubled or changed, or a run did not take place.

Workloads are files: --list shows the built-in ones, --print shows one to be
copied and changed, --workload takes a name or a file.`,
		Example: "  sluice bench --embedded --duration 5s --warm-up 1s --rate 500\n" +
			"  sluice bench --target direct=host:9092 --target sluice=host:19092 --workload steady --rate 5000 --size 1KiB --duration 60s --rounds 5 --html report.html --json report.json\n" +
			"  sluice bench -c sluice.yaml --class control --class telemetry\n" +
			"  sluice bench --print steady > mine.yaml && sluice bench -c sluice.yaml --workload ./mine.yaml",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.list:
				return listWorkloads(cmd.OutOrStdout())
			case f.print != "":
				text, err := benchmarks.Source(f.print)
				if err == nil {
					_, err = cmd.OutOrStdout().Write(text)
				}
				return err
			}
			return bench(cmd, f)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.targets, "target", nil, "name=host:port[,host:port...] to compare; repeat it, the first is the baseline")
	fl.StringVarP(&f.config, "config", "c", "", "compare what this configuration leads to")
	fl.BoolVar(&f.embedded, "embedded", false, "compare embedded parts in this process; not Apache Kafka")
	fl.StringArrayVar(&f.classes, "class", nil, "with -c or --embedded: only this class; repeat it")
	fl.BoolVar(&f.inProcess, "in-process", false, "with -c: start a proxy in this process even when one is running")
	fl.StringVar(&f.workload, "workload", "steady", "a built-in workload, or a file (with a slash or a dot in its name)")
	fl.StringVar(&f.rate, "rate", "", "records per second of the first stream, or max; default: the workload's")
	fl.StringVar(&f.size, "size", "", "bytes of the first stream's values, for example 1KiB; default: the workload's")
	fl.DurationVar(&f.duration, "duration", 0, "measured time of each run; default: the workload's")
	fl.DurationVar(&f.warmUp, "warm-up", 0, "time before that, not measured; default: the workload's")
	fl.IntVar(&f.rounds, "rounds", 5, "rounds; each goes over all targets. Fewer than 4 cannot show a difference")
	fl.IntVar(&f.partitions, "partitions", 0, "partitions of each topic; default: the workload's")
	fl.IntVar(&f.replicas, "replication", 0, "replicas of each partition; default: as many as brokers, at most 3")
	fl.StringVar(&f.client, "client", benchmarks.Clients[0], "what drives the load: "+strings.Join(benchmarks.Clients, " or "))
	fl.StringVar(&f.json, "json", "", "also write the report, with every round, to this file")
	fl.StringVar(&f.html, "html", "", "also write it as one page, with plots")
	fl.StringArrayVar(&f.metrics, "metrics", nil, "name=URL of a target's /metrics; repeat it for each replica")
	fl.StringArrayVar(&f.topics, "topic", nil, "name=pattern of a target's topics, such as otel-*, when its rules decide by name")
	fl.StringArrayVar(&f.controls, "low-latency-topic", nil, "name=pattern for streams that stay in the low-latency tier")
	fl.BoolVar(&f.tls, "tls", false, "speak TLS to every --target")
	fl.StringVar(&f.ca, "tls-ca", "", "PEM file of the authorities to trust; implies --tls")
	fl.StringVar(&f.sasl, "sasl", "", "log in to every --target with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
	fl.StringVar(&f.username, "username", "", "for --sasl")
	fl.StringVar(&f.passwordFile, "password-file", "", "for --sasl")
	f.cost.register(fl)
	fl.BoolVar(&f.list, "list", false, "list the built-in workloads")
	fl.StringVar(&f.print, "print", "", "print a built-in workload")
	return cmd
}

func listWorkloads(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, l := range benchmarks.BuiltIn() {
		fmt.Fprintf(w, "%s\t%s\n", l.Name, l.About)
	}
	return w.Flush()
}

func bench(cmd *cobra.Command, f benchFlags) error {
	work, err := f.load(cmd)
	if err != nil {
		return usage(cmd, err)
	}
	security, err := f.security()
	if err != nil {
		return usage(cmd, err)
	}
	prices, err := f.cost.model()
	if err != nil {
		return usage(cmd, err)
	}
	targets, err := f.parse(security)
	if err != nil {
		return usage(cmd, err)
	}
	// Files are made before the load: none is driven in vain.
	files := map[string]*os.File{}
	for _, name := range []string{f.json, f.html} {
		if name == "" {
			continue
		}
		if files[name], err = os.Create(name); err != nil {
			return err
		}
		defer files[name].Close()
	}
	ctx := cmd.Context()
	out := cmd.OutOrStdout()
	classes := &benchmarks.Classes{Close: func() {}}
	opt := benchmarks.ClassOptions{Only: f.classes, InProcess: f.inProcess, TLS: security.tls}
	for _, s := range work.Streams {
		opt.Streams = append(opt.Streams, s.Name)
	}
	if opt.Logger, err = newLogger(config.Log{Level: "warn", Format: "console"}, cmd.ErrOrStderr()); err != nil {
		return err
	}
	opt.Logger = opt.Logger.Level(zerolog.WarnLevel)
	switch {
	case f.embedded:
		classes, err = benchmarks.Embedded(ctx, opt)
	case f.config != "":
		var cfg *config.Config
		if cfg, err = config.Load(f.config); err == nil {
			classes, err = benchmarks.FromConfig(ctx, cfg, opt)
		}
	}
	if err != nil {
		return err
	}
	defer classes.Close()
	targets = append(classes.Targets, targets...)
	for _, t := range targets {
		for _, url := range t.Metrics {
			if err := benchmarks.CheckMetrics(ctx, url); err != nil {
				return fmt.Errorf("--metrics of %s: %w", t.Name, err)
			}
		}
	}
	each := time.Duration(work.WarmUp+work.Duration) * time.Duration(len(work.Steps)*f.rounds*len(targets))
	fmt.Fprintf(out, "%s: %d targets, %d rounds, about %v.\n", work.Name, len(targets), f.rounds, each.Round(time.Second))
	for _, t := range targets {
		fmt.Fprintf(out, "  %-14s  %s  %s\n", t.Name, strings.Join(t.Bootstrap, ","), t.Note)
	}
	for _, n := range classes.Notes {
		fmt.Fprintln(out, n)
	}
	fmt.Fprintln(out)
	rep, err := benchmarks.Run(ctx, benchmarks.Options{
		Targets: targets, Workload: work, Rounds: f.rounds, Client: f.client, Version: version(), Command: benchCommand(cmd), Price: benchPrice(&prices),
		Progress: func(line string) { fmt.Fprintln(out, line) },
	})
	if err == nil {
		rep.Notes = append(rep.Notes, classes.Notes...)
		rep.Print(out)
	}
	for _, l := range classes.Left {
		fmt.Fprintln(out, l)
	}
	if err != nil {
		return err
	}
	if file := files[f.json]; file != nil {
		if err := errors.Join(rep.WriteJSON(file), file.Close()); err != nil {
			return fmt.Errorf("--json: %w", err)
		}
		fmt.Fprintf(out, "\nEvery round is in %s.\n", f.json)
	}
	if file := files[f.html]; file != nil {
		if err := errors.Join(rep.WriteHTML(file), file.Close()); err != nil {
			return fmt.Errorf("--html: %w", err)
		}
		fmt.Fprintf(out, "The page is %s.\n", f.html)
	}
	if rep.Unsound() {
		return errReported
	}
	return nil
}

// benchCommand is what repeats the run.
func benchCommand(cmd *cobra.Command) []string {
	args := []string{"sluice", "bench"}
	cmd.Flags().Visit(func(fl *pflag.Flag) {
		if many, ok := fl.Value.(pflag.SliceValue); ok {
			for _, v := range many.GetSlice() {
				args = append(args, "--"+fl.Name, v)
			}
			return
		}
		args = append(args, "--"+fl.Name+"="+fl.Value.String())
	})
	return args
}

// load reads the workload and applies what flags change.
func (f benchFlags) load(cmd *cobra.Command) (w benchmarks.Workload, err error) {
	if !slices.Contains(benchmarks.Clients, f.client) {
		return w, fmt.Errorf("--client %s: it is %s", f.client, strings.Join(benchmarks.Clients, " or "))
	}
	if f.rounds < 1 || f.rounds > benchmarks.MaxRounds {
		return w, fmt.Errorf("--rounds %d: choose 1 to %d", f.rounds, benchmarks.MaxRounds)
	}
	if w, err = benchmarks.Load(f.workload); err != nil {
		return w, err
	}
	if f.rate != "" {
		for _, s := range w.Steps {
			if s.Rate != nil {
				return w, fmt.Errorf("--rate: the steps of workload %s have their own rates; print it with --print, and change them", w.Name)
			}
		}
		if w.Streams[0].Rate == 0 {
			return w, fmt.Errorf("--rate: workload %s produces nothing but its backlog", w.Name)
		}
		if w.Streams[0].Rate, err = benchmarks.ParseRate(f.rate); err != nil {
			return w, fmt.Errorf("--rate: %w", err)
		}
	}
	if f.size != "" {
		if w.Streams[0].Size, err = benchmarks.ParseSize(f.size); err != nil {
			return w, fmt.Errorf("--size: %w", err)
		}
	}
	if cmd.Flags().Changed("duration") {
		w.Duration = benchmarks.Duration(f.duration)
	}
	if cmd.Flags().Changed("warm-up") {
		w.WarmUp = benchmarks.Duration(f.warmUp)
	}
	if cmd.Flags().Changed("partitions") {
		w.Partitions = f.partitions
	}
	if cmd.Flags().Changed("replication") {
		w.Replication = f.replicas
	}
	return w, w.Validate()
}

// benchSecurity is how the --target addresses are spoken to.
type benchSecurity struct {
	tls  *tls.Config
	sasl sasl.Mechanism
}

func (f benchFlags) security() (s benchSecurity, err error) {
	if f.tls || f.ca != "" {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return s, fmt.Errorf("--tls-ca: %w", err)
		}
		s.tls.RootCAs = x509.NewCertPool()
		if !s.tls.RootCAs.AppendCertsFromPEM(pem) {
			return s, fmt.Errorf("--tls-ca: %s holds no certificate", f.ca)
		}
	}
	if f.sasl == "" {
		if f.username != "" || f.passwordFile != "" {
			return s, errors.New("--username and --password-file need --sasl, which says how to log in")
		}
		return s, nil
	}
	password, err := os.ReadFile(f.passwordFile)
	if err != nil {
		return s, fmt.Errorf("--password-file: %w", err)
	}
	user, pass := f.username, strings.TrimRight(string(password), "\r\n")
	switch f.sasl {
	case "PLAIN":
		s.sasl = plain.Auth{User: user, Pass: pass}.AsMechanism()
	case "SCRAM-SHA-256":
		s.sasl = scram.Auth{User: user, Pass: pass}.AsSha256Mechanism()
	case "SCRAM-SHA-512":
		s.sasl = scram.Auth{User: user, Pass: pass}.AsSha512Mechanism()
	default:
		return s, fmt.Errorf("--sasl %s: it is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", f.sasl)
	}
	return s, nil
}

// parse reads --target and what belongs to it.
func (f benchFlags) parse(s benchSecurity) (targets []benchmarks.Target, err error) {
	if f.embedded && f.config != "" {
		return nil, errors.New("--embedded and -c are two ways to say what is compared: choose one")
	}
	if !f.embedded && f.config == "" && len(f.targets) == 0 {
		return nil, errors.New("what is to be measured? --target name=host:port, -c sluice.yaml, or --embedded")
	}
	if len(f.classes) > 0 && !f.embedded && f.config == "" {
		return nil, errors.New("--class is for -c and --embedded")
	}
	if f.json != "" && f.json == f.html {
		return nil, errors.New("--json and --html are two files")
	}
	if f.inProcess && f.config == "" {
		return nil, errors.New("--in-process is for -c")
	}
	for _, v := range f.targets {
		name, addrs, ok := strings.Cut(v, "=")
		if !ok || name == "" || addrs == "" {
			return nil, fmt.Errorf("--target %s: write name=host:port", v)
		}
		t := benchmarks.Target{Name: name, Bootstrap: strings.Split(addrs, ","), Topic: benchmarks.DefaultTopic, TLS: s.tls, SASL: s.sasl}
		for _, a := range t.Bootstrap {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				return nil, fmt.Errorf("--target %s: %q is not host:port", v, a)
			}
		}
		targets = append(targets, t)
	}
	for _, x := range []struct {
		flag   string
		values []string
		set    func(t *benchmarks.Target, v string)
	}{
		{"--metrics", f.metrics, func(t *benchmarks.Target, v string) {
			if !strings.Contains(v, "://") {
				v = "http://" + v
			}
			if strings.Count(v, "/") < 3 {
				v += "/metrics"
			}
			t.Metrics = append(t.Metrics, v)
		}},
		{"--topic", f.topics, func(t *benchmarks.Target, v string) { t.Topic = v }},
		{"--low-latency-topic", f.controls, func(t *benchmarks.Target, v string) { t.LowTopic = v }},
	} {
		for _, v := range x.values {
			name, value, _ := strings.Cut(v, "=")
			i := slices.IndexFunc(targets, func(t benchmarks.Target) bool { return t.Name == name })
			if i < 0 || value == "" {
				return nil, fmt.Errorf("%s %s: write name=..., with the name of a --target", x.flag, v)
			}
			if x.flag != "--metrics" && strings.Count(value, "*") != 1 {
				return nil, fmt.Errorf("%s %s: one asterisk stands for what is unique", x.flag, v)
			}
			x.set(&targets[i], value)
		}
	}
	return targets, nil
}
