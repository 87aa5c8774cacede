// Package benchmarks drives the same load against several ways to Kafka, in
// turns on the same machine, and compares them: a machine's own figures say
// little about another's. It is what `sluice bench` runs; README.md has the
// method, the workloads and the fields of the report.
package benchmarks
