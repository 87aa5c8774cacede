SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BIN := .cache/bin
DEMO_ARGS ?=

.PHONY: help run build test test-full bench bench-tiers bench-peers bench-workloads bench-replay bench-sealing lint clean linters prerequisites

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: ## start everything on this machine, with a demonstration (DEMO_ARGS=--demo=false for none)
	go run . dev $(DEMO_ARGS)

build: ## build the static binary ./sluice
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X github.com/sluice-kafka/sluice/cli.Version=$(VERSION)' -o sluice .

test: ## lint, then every test, against real Kafka and a real S3 server too
	@tools/test.sh

test-full: linters ## the long tests against real parts, more of everything, in up to 70 minutes
	@tools/test.sh full

BENCH_BASE ?= HEAD~1
BENCH_PKGS ?= ./...
BENCH_COUNT ?= 6
BENCH_GO_ARGS ?=

bench: linters ## Go benchmarks of the previous commit and of the tree, compared (BENCH_BASE, BENCH_PKGS, BENCH_COUNT)
	@BENCH_BASE='$(BENCH_BASE)' BENCH_PKGS='$(BENCH_PKGS)' BENCH_COUNT='$(BENCH_COUNT)' BENCH_GO_ARGS='$(BENCH_GO_ARGS)' tools/bench.sh

BENCH_ARGS ?= -rounds 5 -steady 5s -warm-up 2s -bulk 64

bench-tiers: ## compare direct Kafka with both tiers, whole and by part, in under eight minutes
	SLUICE_LONG=1 go test -count=1 -v -run 'TestTiersSideBySide|TestLongTiersByPart' -timeout 60m ./benchmarks -args $(BENCH_ARGS)

PEERS_ARGS ?= -peer-rounds 7 -peer-steady 4s -peer-warm-up 1s -peer-turn 1s -peer-bulk 256 -peer-idle 2000

bench-peers: ## compare the low-latency tier with the least that a hop can do, in under ten minutes
	SLUICE_LONG=1 go test -count=1 -v -run TestLongPeersSideBySide -timeout 30m ./benchmarks -args $(PEERS_ARGS)

EACH_ARGS ?= -each-rounds 5 -each-duration 4s -each-warm-up 1s
EACH_WORKLOADS ?= agent-mix,burst,catch-up,fan-out,many-connections,many-partitions,one-partition,transactions

bench-workloads: ## the other workloads of sluice bench at their size, beside direct Kafka, in about twenty minutes
	SLUICE_LONG=1 go test -count=1 -v -run TestLongEachWorkload -timeout 90m ./benchmarks -args -each-workloads $(EACH_WORKLOADS) $(EACH_ARGS)

REPLAY_ARGS ?= -replay-mib 512 -replay-rounds 3 -replay-control 2s -replay-stores s3,line,file

bench-replay: ## compare a replay through sluice with raw GETs of the same bytes, in under five minutes
	SLUICE_LONG=1 go test -count=1 -v -run TestLongReplayBesideRawGets -timeout 30m ./benchmarks -args $(REPLAY_ARGS)

SEALING ?= 15s

bench-sealing: ## how early seals serve Java's default producer, for some minutes
	SLUICE_SEALING=$(SEALING) go test -count=1 -v -run 'TestEarlySealsOnRealParts|TestProducersShareEarlySeals' -timeout 30m ./integration

lint: linters ## check formatting, mistakes and which package may import which
	@tools/lint.sh

clean: ## remove the binary and everything downloaded or built for tests
	rm -rf sluice .cache

prerequisites: ## install or name what the tests need
	@tools/prerequisites.sh

# Always through go build: it knows whether the pinned version or Go changed.
linters:
	@mkdir -p $(BIN)
	@cd tools && go build -o ../$(BIN)/ honnef.co/go/tools/cmd/staticcheck github.com/OpenPeeDeeP/depguard/v2/cmd/depguard gotest.tools/gotestsum golang.org/x/perf/cmd/benchstat
