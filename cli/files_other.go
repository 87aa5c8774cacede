//go:build !unix

package cli

func openFiles() (uint64, bool) { return 0, false }
