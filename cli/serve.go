package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/server"
)

func newServe() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the proxy in front of a cluster",
		Long: `Runs one replica of the proxy until SIGTERM or SIGINT, then drains: it stops
accepting, closes idle connections, answers what it has read, makes durable what
it has buffered. Consumers that only wait (Fetch, JoinGroup) are sent elsewhere
after a second. The exit code is 0 when all was answered, and 1 when
limits.drain_timeout cut something short.

The file is read again on SIGHUP and when it changes. Topics, classes,
default_class and log.level take effect with the next batch; the log names
changed keys that need a restart. A file with a mistake is refused as a whole.

Replicas need nothing of each other: give all of them the same file, and put a
TCP balancer in front of all their ports.`,
		Example: "  sluice serve -c sluice.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), cmd, path)
		},
	}
	configFlag(cmd, &path)
	return cmd
}

func serve(ctx context.Context, cmd *cobra.Command, path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	log, err := newLogger(cfg.Log, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if have, ok := openFiles(); ok {
		warnOfFiles(log, have, cfg.Limits.Connections)
	}
	server.LimitMemory(cfg.Limits)
	s, err := server.Start(ctx, cfg, server.Options{Logger: log})
	switch {
	case err != nil && ctx.Err() != nil:
		log.Info().Err(err).Msg("stopped before it was ready")
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w; another process has the port: stop it, or change listen and admin in %s on every replica", err, path)
	case err != nil:
		return err
	}
	event := log.Info().Str("version", version()).Stringer("bootstrap", s.Addr()).Str("cluster", s.Cluster().ClusterID())
	if a := s.AdminAddr(); a != nil {
		event = event.Stringer("admin", a)
	}
	event.Msg("ready: clients may connect")

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var watched sync.WaitGroup
	watched.Go(func() { watch(ctx, path, hup, s, log) })

	<-ctx.Done()
	log.Info().Dur("at_most", cfg.Limits.DrainTimeout).Msg("draining")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Limits.DrainTimeout)
	defer cancel()
	if err := s.Shutdown(drain); err != nil {
		return fmt.Errorf("draining: %w", err)
	}
	watched.Wait()
	log.Info().Msg("drained")
	return nil
}

// ownFiles is what a replica has open beside its clients' connections and
// those to their brokers: listeners, store, admin.
const ownFiles = 1000

// warnOfFiles says at the start what would otherwise show when it is busiest.
func warnOfFiles(log zerolog.Logger, have uint64, connections int) {
	if need := 2*uint64(connections) + ownFiles; have < need {
		log.Warn().Uint64("open_files", have).Uint64("needed", need).Int("limits.connections", connections).
			Msg("the limit on open files is too low for limits.connections: raise it (ulimit -n, LimitNOFILE=, or the container's), or lower limits.connections")
	}
}

// watch puts every good version of the file in force, and says so. It ends with
// ctx.
func watch(ctx context.Context, path string, hup <-chan os.Signal, s *server.Server, log zerolog.Logger) {
	log = log.With().Str("file", path).Logger()
	first := true // Watch also reports the file that serve has just read
	accept := func(next *config.Config) {
		applied, waiting, err := s.Reload(next)
		switch {
		case err != nil:
			refuse(log, err)
			return
		case len(applied)+len(waiting) > 0:
			log.Info().Strs("applied", applied).Strs("after_restart", waiting).Msg("the configuration has changed")
		case !first:
			log.Info().Msg("the configuration was read again; nothing has changed")
		}
		first = false
		if err := setLevel(next.Log.Level); err != nil {
			refuse(log, err)
		}
	}
	err := config.Watch(ctx, path, hup, accept, func(err error) { refuse(log, err) })
	if err == nil || ctx.Err() != nil {
		return
	}
	log.Error().Err(err).Msg("changes of the file go unnoticed; send SIGHUP after each, or raise fs.inotify.max_user_instances and restart")
	for {
		select {
		case <-hup:
			if next, err := config.Load(path); err != nil {
				refuse(log, err)
			} else {
				accept(next)
			}
		case <-ctx.Done():
			return
		}
	}
}

func refuse(log zerolog.Logger, err error) {
	log.Error().Err(err).Msg("the changed configuration is refused as a whole; the old one stays")
}
