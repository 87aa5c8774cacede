package cli

import (
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/dev"
)

func newDev() *cobra.Command {
	o := dev.Options{}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything on this machine, with a demonstration",
		Long: `Starts an embedded Kafka (its data in a folder), a file:// object store and the
proxy; prints the bootstrap address and the classes; drives a demonstration that
produces to and consumes from a topic of each tier through the one address; and
then stays up for your own clients until Ctrl-C. Any topic that they create gets
its class by the rules in DIR/sluice.yaml, which you may change while it runs.

The embedded Kafka is for trying things out; it is not Apache Kafka.`,
		Example: "  sluice dev\n  sluice dev --demo=false\n  sluice dev --data-dir /tmp/try --port 29092",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			if f, ok := o.Out.(*os.File); ok {
				o.Terminal = term.IsTerminal(int(f.Fd()))
			}
			log, err := newLogger(config.Log{Level: "warn", Format: "console"}, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			o.Logger = log.Level(zerolog.WarnLevel)
			return dev.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "sluice-data", "folder for the embedded Kafka, the objects and the configuration")
	cmd.Flags().IntVar(&o.Port, "port", 19092, "port for bootstrap.servers; about 600 ports above it are used too")
	cmd.Flags().BoolVar(&o.Demo, "demo", true, "drive the demonstration")
	cmd.Flags().DurationVar(&o.DemoTime, "demo-time", 10*time.Second, "how long the demonstration lasts")
	cmd.Flags().BoolVar(&o.Once, "once", false, "end after the demonstration")
	return cmd
}
