// Sluice is a Kafka proxy that keeps each topic's payloads where its latency
// class says: on the brokers, or in object storage.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-kafka/sluice/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
