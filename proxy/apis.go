package proxy

import (
	"encoding/binary"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Treatment is what happens to an API key's requests and answers.
type Treatment string

const (
	Relay   Treatment = "relay"   // bytes pass unchanged, both ways
	Map     Treatment = "map"     // broker ids and addresses are translated
	Rewrite Treatment = "rewrite" // payloads or limits are replaced
	Answer  Treatment = "answer"  // answered here on a diskless listener, relayed elsewhere
	Hide    Treatment = "hide"    // not advertised; a request closes the connection
)

// API is one key of the protocol as the proxy speaks it.
type API struct {
	Key       int16
	Name      string
	Min, Max  int16 // versions that the proxy understands; it advertises what the broker also does
	Treatment Treatment
	Why       string // for Hide: the reason

	flexible int16 // first version in KIP-482's encoding
	// handle decides what happens to a request; nil relays it. It runs in the
	// connection's reader, in order, and may block it: that is back-pressure.
	handle func(*conn, *request) error
}

// login reports whether a broker that asks for logins answers only after one.
func (a *API) login() bool { return a.Key != 17 && a.Key != 18 && a.Key != 36 }

// poll reports whether a client that loses the answer asks again and has lost
// nothing: what a broker may hold for long (Fetch, JoinGroup, SyncGroup), and
// the heartbeats that wait behind those.
func (a *API) poll() bool {
	switch a.Key {
	case 1, 11, 12, 14, 68, 76, 88:
		return true
	}
	return false
}

const neverFlexible = 1<<15 - 1

// apis is the table of every key that the proxy knows. A key that is not in it
// is hidden: its frames might carry broker ids or payloads.
func apis() []*API {
	table := []*API{
		{Key: 0, Max: 13, Treatment: Rewrite, handle: (*conn).produce},
		// Below v4, brokers convert to message sets, which would undo placeholders.
		{Key: 1, Min: 4, Max: 18, Treatment: Rewrite, handle: (*conn).fetch},
		{Key: 2, Max: 11},
		{Key: 3, Max: 13, Treatment: Map, handle: (*conn).metadata},
		{Key: 4, Treatment: Hide, Why: "between brokers"},
		{Key: 5, Treatment: Hide, Why: "between brokers"},
		{Key: 6, Treatment: Hide, Why: "between brokers"},
		{Key: 7, Treatment: Hide, Why: "between brokers"},
		{Key: 8, Max: 10},
		{Key: 9, Max: 10},
		{Key: 10, Max: 6, Treatment: Map, handle: (*conn).findCoordinator},
		{Key: 11, Max: 9},
		{Key: 12, Max: 4},
		{Key: 13, Max: 5},
		{Key: 14, Max: 5},
		{Key: 15, Max: 6},
		{Key: 16, Max: 5, Treatment: Answer, handle: (*conn).answerEmpty},
		// v0 is followed by raw tokens without Kafka's framing.
		{Key: 17, Min: 1, Max: 1, handle: (*conn).saslHandshake},
		// v5 carries the node id that the client means to reach (KIP-1242).
		{Key: 18, Max: 4, Treatment: Map, handle: (*conn).apiVersions},
		{Key: 19, Max: 7, Treatment: Map, handle: (*conn).createTopics},
		{Key: 20, Max: 6, handle: (*conn).deleteTopics},
		{Key: 21, Max: 2, handle: (*conn).deleteRecords},
		{Key: 22, Max: 5},
		{Key: 23, Max: 4},
		{Key: 24, Max: 5},
		{Key: 25, Max: 4},
		{Key: 26, Max: 5},
		{Key: 27, Max: 2}, // kafka-transactions abort sends it; the broker authorizes it
		{Key: 28, Max: 6},
		{Key: 29, Max: 3},
		{Key: 30, Max: 3},
		{Key: 31, Max: 3},
		{Key: 32, Max: 4, Treatment: Map, handle: (*conn).describeConfigs},
		{Key: 33, Max: 2, Treatment: Map, handle: (*conn).alterConfigs},
		{Key: 34, Max: 2},
		{Key: 35, Max: 5, Treatment: Answer, handle: (*conn).answerEmpty},
		{Key: 36, Max: 2, handle: (*conn).saslAuthenticate},
		{Key: 37, Max: 3, Treatment: Map, handle: (*conn).createPartitions},
		{Key: 38, Max: 3},
		{Key: 39, Max: 2},
		{Key: 40, Max: 2},
		{Key: 41, Max: 3},
		{Key: 42, Max: 3},
		{Key: 43, Max: 2},
		{Key: 44, Max: 1, Treatment: Map, handle: (*conn).incrementalAlterConfigs},
		{Key: 45, Max: 1, Treatment: Map, handle: (*conn).alterPartitionAssignments},
		{Key: 46, Max: 0},
		{Key: 47, Max: 0},
		{Key: 48, Max: 1},
		{Key: 49, Max: 1},
		{Key: 50, Max: 0},
		{Key: 51, Max: 0},
		{Key: 52, Treatment: Hide, Why: "between controllers"},
		{Key: 53, Treatment: Hide, Why: "between controllers"},
		{Key: 54, Treatment: Hide, Why: "between controllers"},
		{Key: 55, Max: 1}, // v2 names the controllers' own listeners
		{Key: 56, Treatment: Hide, Why: "between brokers"},
		{Key: 57, Max: 2},
		{Key: 58, Treatment: Hide, Why: "between brokers"},
		{Key: 59, Treatment: Hide, Why: "between controllers"},
		{Key: 60, Max: 2, Treatment: Map, handle: (*conn).describeCluster},
		{Key: 61, Max: 0},
		{Key: 62, Treatment: Hide, Why: "between brokers"},
		{Key: 63, Treatment: Hide, Why: "between brokers"},
		{Key: 64, Max: 0, Treatment: Map, handle: (*conn).unregisterBroker},
		{Key: 65, Max: 0},
		{Key: 66, Max: 2, Treatment: Answer, handle: (*conn).answerEmpty},
		{Key: 67, Treatment: Hide, Why: "between brokers"},
		{Key: 68, Max: 1},
		{Key: 69, Max: 1},
		{Key: 70, Treatment: Hide, Why: "between controllers"},
		{Key: 71, Max: 0},
		{Key: 72, Max: 0},
		{Key: 73, Treatment: Hide, Why: "between brokers"},
		{Key: 74, Max: 1},
		{Key: 75, Max: 0},
		{Key: 76, Max: 1},
		{Key: 77, Max: 1},
		// v0 was an early form that no broker has any more.
		{Key: 78, Min: 1, Max: 2, Treatment: Map, handle: (*conn).shareFetch},
		{Key: 79, Min: 1, Max: 2, Treatment: Map, handle: (*conn).shareAcknowledge},
		{Key: 80, Max: 1},
		{Key: 81, Max: 0},
		{Key: 82, Treatment: Hide, Why: "between controllers"},
		{Key: 83, Treatment: Hide, Why: "between brokers"},
		{Key: 84, Treatment: Hide, Why: "between brokers"},
		{Key: 85, Treatment: Hide, Why: "between brokers"},
		{Key: 86, Treatment: Hide, Why: "between brokers"},
		{Key: 87, Treatment: Hide, Why: "between brokers"},
		{Key: 88, Max: 1},
		{Key: 89, Max: 1},
		{Key: 90, Max: 1},
		{Key: 91, Max: 0},
		{Key: 92, Max: 0},
		{Key: 93, Max: 0},
		{Key: 94, Max: 0},
	}
	for _, a := range table {
		a.Name = kmsg.NameForKey(a.Key)
		if a.Treatment == "" {
			a.Treatment = Relay
		}
		a.flexible = neverFlexible
		if req := kmsg.RequestForKey(a.Key); req != nil {
			for v := int16(0); v <= req.MaxVersion(); v++ {
				if req.SetVersion(v); req.IsFlexible() {
					a.flexible = v
					break
				}
			}
		}
	}
	return table
}

// APIs lists every key that the proxy knows, by key.
func APIs() []API {
	var out []API
	for _, a := range apis() {
		out = append(out, *a)
	}
	return out
}

// byKey finds APIs by key without hashing.
type byKey [128]*API

func newByKey() *byKey {
	var t byKey
	for _, a := range apis() {
		t[a.Key] = a
	}
	return &t
}

// find returns nil for a key that clients may not use.
func (t *byKey) find(key int16) *API {
	if key < 0 || int(key) >= len(t) || t[key] == nil || t[key].Treatment == Hide {
		return nil
	}
	return t[key]
}

// decodeRequest reads a request's body into req. Before a large one it waits for
// what that may take; one that takes more than there is ends the connection.
func (c *conn) decodeRequest(r *request, req kmsg.Request) error {
	if n := len(r.in.b); n > readAhead {
		if most := max(c.p.decoded.max/requestFactor, smallFrame); int64(n) > most {
			return fmt.Errorf("%w: %d bytes of %s are more than the %d that are decoded; raise limits.request_memory_bytes, or send less at a time", errRefused, n, r.api.Name, most)
		}
		if err := c.allow(r, requestFactor*n); err != nil {
			return err
		}
	}
	req.SetVersion(r.version)
	if err := req.ReadFrom(r.in.b[r.body:]); err != nil {
		return wire.ErrMalformed
	}
	return nil
}

// allow waits until a request may take n bytes beside its frame, until it is
// answered.
func (c *conn) allow(r *request, n int) error {
	got, err := c.p.decoded.await(c.present, n, c.listener())
	r.decoded += got
	return err
}

// forgo gives back what a request was allowed: nothing of it is kept.
func (c *conn) forgo(r *request) {
	if r.decoded > 0 {
		c.p.decoded.release(r.decoded)
		r.decoded = 0
	}
}

// replaceBody makes req what goes upstream in the place of the client's own
// frame, under the same header.
func replaceBody(r *request, req kmsg.Request) {
	out := make([]byte, 0, len(r.in.b)+64)
	out = append(out, r.in.b[:r.body]...)
	out = req.AppendTo(out)
	wire.SetSize(out)
	r.out = [][]byte{out}
}

// responseFlexible says whether the answers of a version have header v1;
// ApiVersions' never have, so that a client can read an answer to a version
// that the broker does not know (KIP-511).
func (a *API) responseFlexible(version int16) bool { return version >= a.flexible && a.Key != 18 }

func decodeResponse(r *request, in *frame, resp kmsg.Response) error {
	return decodeAs(r.version, r, in, resp)
}

func decodeAs(version int16, r *request, in *frame, resp kmsg.Response) error {
	body, err := wire.ResponseBody(in.b, r.api.responseFlexible(version))
	if err != nil {
		return err
	}
	resp.SetVersion(version)
	if err := resp.ReadFrom(in.b[body:]); err != nil {
		return wire.ErrMalformed
	}
	return nil
}

// encodeResponse is a whole frame that answers r, in r's version.
func encodeResponse(r *request, resp kmsg.Response) []byte {
	return encodeAs(r.version, r, resp)
}

func encodeAs(version int16, r *request, resp kmsg.Response) []byte {
	resp.SetVersion(version)
	out := binary.BigEndian.AppendUint32(make([]byte, wire.SizePrefix, 256), uint32(r.correlationID))
	if r.api.responseFlexible(version) {
		out = append(out, 0) // no tagged fields
	}
	out = resp.AppendTo(out)
	wire.SetSize(out)
	return out
}

// rewrite makes an answer function that decodes the broker's answer, lets fn
// change it, and encodes it again.
func rewrite[R kmsg.Response](empty func() R, fn func(R) error) func(*conn, *request, *frame) ([][]byte, error) {
	return func(_ *conn, r *request, in *frame) ([][]byte, error) {
		resp := empty()
		if err := decodeResponse(r, in, resp); err != nil {
			return nil, err
		}
		if err := fn(resp); err != nil {
			return nil, err
		}
		return [][]byte{encodeResponse(r, resp)}, nil
	}
}
