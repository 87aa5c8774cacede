// Package benchmarks runs the same load against Kafka directly and through each
// of sluice's tiers, in turns on the same machine, and prints ratios: a machine's
// own figures say little about another's. README.md says how to repeat it.
package benchmarks
