package lowlatency

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxHandshake bounds the answer to a handshake.
const maxHandshake = 64 << 10

// Mechanisms asks a broker which SASL mechanisms it takes: it names one that
// none has, and the refusal lists the real ones (SaslHandshake v1). None means
// that the listener has no SASL.
func (c *Cluster) Mechanisms(ctx context.Context) ([]string, error) {
	conn, err := c.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	req := kmsg.NewPtrSASLHandshakeRequest()
	req.SetVersion(1)
	req.Mechanism = "SLUICE-ASKS"
	if _, err := conn.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("sluice")).AppendRequest(nil, req, 1)); err != nil {
		return nil, err
	}
	var size [4]byte
	switch _, err := io.ReadFull(conn, size[:]); {
	case errors.Is(err, io.EOF):
		return nil, nil // a listener without SASL may hang up, or answer ILLEGAL_SASL_STATE
	case err != nil:
		return nil, fmt.Errorf("no answer to SaslHandshake: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > maxHandshake {
		return nil, fmt.Errorf("an answer of %d bytes to SaslHandshake", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	resp := kmsg.NewPtrSASLHandshakeResponse()
	resp.SetVersion(1)
	if err := resp.ReadFrom(body[4:]); err != nil {
		return nil, err
	}
	return resp.SupportedMechanisms, nil
}
