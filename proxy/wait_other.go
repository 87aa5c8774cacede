//go:build !unix

package proxy

import (
	"net"

	"github.com/sluice-kafka/sluice/turns"
)

type socketWait struct{ arrivals *arrivals }

func newSocketWait(net.Conn, func() []byte, func(), *arrivals) *socketWait { return nil }

func (*socketWait) read() (int, error) { panic("never made") }
func (*socketWait) fill([]byte) error  { panic("never made") }

type socketWrite struct{}

func newSocketWrite(net.Conn) *socketWrite { return nil }

func (*socketWrite) write(*sink, []byte) (int, error) { panic("never made") }

func (*socketWrite) inTurns(net.Buffers, *turns.Turns) (int, error) { panic("never made") }
