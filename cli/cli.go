// Package cli is sluice's command line: it reads flags and files, calls the
// packages that do the work, and prints for people.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
)

// Version is set by the linker (see the Makefile).
var Version = ""

// errReported ends a command whose output already says what is wrong.
var errReported = errors.New("reported")

// exitCode ends a command with a code of its own.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string { return e.err.Error() }
func (e exitCode) Unwrap() error { return e.err }

// Run executes one command and returns the process's exit code: 0, or 1 when
// something was wrong, or what else the command says of itself.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	code := 1
	var own exitCode
	if errors.As(err, &own) {
		code = own.code
	}
	var problems config.Problems
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errReported):
	case errors.As(err, &problems):
		printProblems(stderr, problems)
	default:
		fmt.Fprintln(stderr, "sluice:", err)
	}
	return code
}

func printProblems(w io.Writer, problems config.Problems) {
	for _, p := range problems {
		fmt.Fprintf(w, "%s\n\n", strings.TrimRight(p.String(), "\n"))
	}
	noun := "problems"
	if len(problems) == 1 {
		noun = "problem"
	}
	fmt.Fprintf(w, "%d %s\n", len(problems), noun)
}

// usage ends a command that was called wrongly, and says where to look.
func usage(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
}

func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasSubCommands():
		return usage(cmd, fmt.Errorf("there is no command %q%s", args[0], didYouMean(cmd, args[0])))
	}
	return usage(cmd, fmt.Errorf("%s takes flags only, not %q", cmd.Name(), args[0]))
}

func didYouMean(cmd *cobra.Command, wrong string) string {
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(wrong); len(like) > 0 {
		return "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return ""
}

const longHelp = `Sluice stands in front of the Kafka that you already run. Clients change one
thing: their bootstrap address. Each topic has a latency class, in one file,
and the class decides where the topic's payloads live:

  low-latency tier   in the brokers, as ever      class control, operational
  diskless tier      in object storage; Kafka     class enrichment, telemetry,
                     keeps a tiny placeholder     replay, audit

Kafka still owns offsets, order, transactions, groups, retention and ACLs, so
sluice keeps no state: run as many replicas as you like, change a topic's class
at any time, and its log simply holds both kinds.

Clients see every broker twice, at two ports of the proxy: as itself, and as a
diskless broker (id + 1048576), so that slow writes to object storage and fast
ones to brokers never share a connection.

First steps:
  sluice dev                        all of it on this machine, with a demonstration
  sluice check -c sluice.yaml       is the file right?  --live: and the world?
  sluice topics -c sluice.yaml      which topic goes where, and why
  sluice serve -c sluice.yaml       run
  sluice gc -c sluice.yaml          delete from the store what nothing refers to
  sluice cost                       what does it save, and what does it cost?
  sluice advise                     which topics should go where, by what they do now?
  sluice fsck -c sluice.yaml        can everything in object storage be read?
  sluice drain 'otel-*'             do topics still need object storage?
  sluice copy -c sluice.yaml        the way out: topics, payloads resolved, as plain ones
  sluice audit verify               is what audit topics hold as it was written?`

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "A Kafka proxy with two tiers: brokers for what is urgent, object storage for what is much",
		Long:          longHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(usage)
	root.AddCommand(newServe(), newCheck(), newTopics(), newCost(), newAdvise(), newBench(), newGC(), newFsck(), newCopy(), newDrain(), newCompact(), newAudit(), newDev(), newVersion())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "sluice %s %s/%s %s\n", version(), runtime.GOOS, runtime.GOARCH, runtime.Version())
		},
	}
}

// version falls back to what the Go tool recorded.
func version() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// configFlag adds -c.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "sluice.yaml", "configuration file; see docs/configuration.md")
}

func newLogger(l config.Log, w io.Writer) (zerolog.Logger, error) {
	if err := setLevel(l.Level); err != nil {
		return zerolog.Nop(), err
	}
	if l.Format == "console" {
		color := false
		if f, ok := w.(*os.File); ok {
			info, err := f.Stat()
			color = err == nil && info.Mode()&os.ModeCharDevice != 0
		}
		w = zerolog.ConsoleWriter{Out: w, NoColor: !color, TimeFormat: "15:04:05.000"}
	}
	return zerolog.New(w).With().Timestamp().Logger(), nil
}

// setLevel sets the whole process's level: unlike a logger's own it may change
// while the process runs.
func setLevel(name string) error {
	level, err := zerolog.ParseLevel(name)
	if err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	zerolog.SetGlobalLevel(level)
	return nil
}
