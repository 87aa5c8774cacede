//go:build !unix

package proxy

type socketWait struct{}

func newSocketWait(*frameReader) *socketWait { return nil }

func (*socketWait) read() (int, error) { panic("never made") }
