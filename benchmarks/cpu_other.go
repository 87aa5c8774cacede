//go:build !unix

package benchmarks

func ownCPU() float64 { return 0 }
