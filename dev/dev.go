// Package dev runs all of sluice on one machine, for a first look and for
// development: an embedded Kafka (kfake, its data in a folder), a file:// object
// store, the proxy, and a demonstration that drives both tiers through the one
// address.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/server"
	"github.com/sluice-kafka/sluice/tiers"
)

// Options are what a person may choose.
type Options struct {
	DataDir  string        // everything is kept here for the next start
	Port     int           // of the bootstrap listener; the others follow it
	Demo     bool          // drive the demonstration first
	DemoTime time.Duration // how long it lasts
	Once     bool          // end after the demonstration
	Out      io.Writer
	Terminal bool // Out is a terminal: the demonstration redraws in place
	Logger   zerolog.Logger
}

// Ports, from Options.Port: bootstrap, then brokers (two each), admin, and the
// embedded Kafka's own.
const (
	brokers     = 3
	brokerPorts = 8
	adminPort   = 552
	kafkaPorts  = 600
	clusterID   = "sluice-dev-cluster"
	partitions  = 3
)

const fileTemplate = `# The configuration of "sluice dev". Change it while it runs: topics and classes
# take effect with the next batch. docs/configuration.md describes every key.
kafka:
  bootstrap: ["127.0.0.1:%[2]d"]
listen:
  bootstrap: "127.0.0.1:%[1]d"
  brokers: "127.0.0.1:%[3]d-%[4]d"
  advertise: "127.0.0.1"
  node_ids: "0-2"
admin: "127.0.0.1:%[5]d"
stores:
  default: { url: "file://%[6]s", lock: none }
default_class: operational
topics:                                # first match wins
  - { match: ["control*", "payments*", "demo.control"], class: control }
  - { match: ["enrich*"], class: enrichment }
  - { match: ["telemetry*", "otel-*", "agent.trace.*", "demo.telemetry"], class: telemetry }
  - { match: ["replay*"], class: replay }
  - { match: ["audit*"], class: audit }
classes:
  telemetry: { linger: 250ms, object_size: 8MiB, store: default }
log: { level: warn, format: console }
`

// validate refuses what no start could satisfy, before anything is written.
func (o Options) validate() error {
	const lastPort = 65535
	switch {
	case o.Port < 1 || o.Port+kafkaPorts+brokers-1 > lastPort:
		return fmt.Errorf("--port %d: it and the %d ports above it are needed, so choose one from 1 to %d", o.Port, kafkaPorts+brokers-1, lastPort-kafkaPorts-brokers+1)
	case o.Demo && o.DemoTime <= 0:
		return fmt.Errorf("--demo-time %v: a demonstration takes time, for example 10s; --demo=false leaves it out", o.DemoTime)
	case o.Once && !o.Demo:
		return errors.New("--once ends after the demonstration, and --demo=false leaves that out: choose one of them")
	}
	return nil
}

// prepare makes the folder and its configuration file, and loads it.
func prepare(o Options) (path string, cfg *config.Config, err error) {
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return "", nil, err
	}
	objects := filepath.Join(dir, "objects")
	if err := os.MkdirAll(objects, 0o755); err != nil {
		return "", nil, fmt.Errorf("making the data folder: %w; choose another with --data-dir", err)
	}
	path = filepath.Join(dir, "sluice.yaml")
	p := o.Port
	text := fmt.Sprintf(fileTemplate, p, p+kafkaPorts, p+brokerPorts, p+brokerPorts+2*brokers-1, p+adminPort, objects)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return "", nil, err
		}
	}
	cfg, err = config.Load(path)
	if err != nil {
		return "", nil, err
	}
	if _, port, _ := net.SplitHostPort(cfg.Listen.Bootstrap); port != strconv.Itoa(p) {
		return "", nil, fmt.Errorf("%s was made for port %s, not %d: use --port %s, another --data-dir, or remove the file", path, port, p, port)
	}
	return path, cfg, nil
}

// startTimeout bounds the start of all parts.
const startTimeout = 30 * time.Second

// Run brings everything up, demonstrates, and stays until ctx ends.
func Run(ctx context.Context, o Options) error {
	if err := o.validate(); err != nil {
		return err
	}
	path, cfg, err := prepare(o)
	if err != nil {
		return err
	}
	var ports []int
	_, port, err := net.SplitHostPort(cfg.Kafka.Bootstrap[0])
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	for i := range brokers {
		ports = append(ports, first+i)
	}
	kafka, err := kfake.NewCluster(
		kfake.Ports(ports...),
		kfake.ClusterID(clusterID),
		kfake.DataDir(filepath.Join(filepath.Dir(path), "kafka")),
		kfake.AllowAutoTopicCreation(),
		kfake.DefaultNumPartitions(partitions),
	)
	if err != nil {
		return portRemedy(fmt.Errorf("embedded Kafka: %w", err))
	}
	defer kafka.Close()
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	s, err := server.Start(starting, cfg, server.Options{Logger: o.Logger})
	cancel()
	if err != nil {
		return portRemedy(err)
	}
	stop := func() error {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Limits.DrainTimeout)
		defer cancel()
		return s.Shutdown(drain)
	}
	watching, endWatch := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(watching, path, s, o)
	}()

	introduce(o.Out, path, cfg, s)
	var demoErr error
	if o.Demo {
		if demoErr = demonstrate(ctx, o, cfg, s); demoErr != nil && ctx.Err() == nil {
			demoErr = fmt.Errorf("demonstration: %w", demoErr)
		}
	}
	if demoErr == nil && !o.Once && ctx.Err() == nil {
		fmt.Fprintf(o.Out, "\nYour turn: bootstrap.servers=%s. A topic's name decides its class; see\n  sluice topics -c %s\nCtrl-C ends; everything is kept in %s for the next start.\n", cfg.Listen.Bootstrap, path, filepath.Dir(path))
		<-ctx.Done()
	}
	endWatch()
	<-watched
	if ctx.Err() != nil {
		demoErr = nil // somebody pressed Ctrl-C
		fmt.Fprintln(o.Out, "\nStopping: finishing what is in flight.")
	}
	return errors.Join(demoErr, stop())
}

func portRemedy(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w; is another sluice dev running? Choose other ports with --port, and a folder of their own with --data-dir", err)
	}
	return err
}

// watch applies changes of the configuration file.
func watch(ctx context.Context, path string, s *server.Server, o Options) {
	err := config.Watch(ctx, path, nil, func(next *config.Config) {
		applied, waiting, err := s.Reload(next)
		switch {
		case err != nil:
			fmt.Fprintf(o.Out, "The changed configuration is refused: %v\n", err)
		case len(applied) > 0:
			fmt.Fprintf(o.Out, "The configuration has changed: %s now in force.\n", strings.Join(applied, ", "))
		}
		if len(waiting) > 0 {
			fmt.Fprintf(o.Out, "After a restart: %s.\n", strings.Join(waiting, ", "))
		}
	}, func(err error) {
		fmt.Fprintf(o.Out, "The changed configuration is refused, the old one stays:\n%v\n", err)
	})
	if err != nil && ctx.Err() == nil {
		o.Logger.Warn().Err(err).Msg("the configuration file is not watched")
	}
}

func introduce(out io.Writer, path string, cfg *config.Config, s *server.Server) {
	fmt.Fprintf(out, "sluice is up: one Kafka address, two tiers.\n\n  bootstrap.servers  %s\n  configuration      %s\n", cfg.Listen.Bootstrap, path)
	if a := s.AdminAddr(); a != nil {
		fmt.Fprintf(out, "  metrics            http://%s/metrics\n", a)
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  CLASS\tTIER\tLINGER\tTOPICS")
	for _, name := range classOrder(cfg) {
		c := cfg.Classes[name]
		linger := "-"
		if c.Tier == tiers.Diskless {
			linger = c.Linger.String()
		}
		var topics []string
		for _, r := range cfg.Rules {
			if r.Class == name {
				topics = append(topics, r.Patterns...)
			}
		}
		if cfg.DefaultClass == name {
			topics = append(topics, "(all others)")
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", name, c.Tier, linger, strings.Join(topics, " "))
	}
	_ = w.Flush()
	fmt.Fprintln(out)
}

// classOrder lists low-latency classes first, then by linger.
func classOrder(cfg *config.Config) []string {
	var names []string
	for name := range cfg.Classes {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		x, y := cfg.Classes[a], cfg.Classes[b]
		if x.Tier != y.Tier {
			return int(x.Tier) - int(y.Tier)
		}
		if x.Linger != y.Linger {
			return int(x.Linger - y.Linger)
		}
		return strings.Compare(a, b)
	})
	return names
}
