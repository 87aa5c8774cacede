//go:build !linux && !darwin

package diskcache

import (
	"errors"
	"io/fs"
	"os"
)

var errUnsupported = errors.New("disk_cache is for Linux and macOS")

func lockFile(*os.File) error         { return errUnsupported }
func owned(fs.FileInfo) bool          { return false }
func freeBytes(string) (int64, error) { return 0, errUnsupported }
