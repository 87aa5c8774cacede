package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// SaslHandshake (17), v1; SaslAuthenticate (36), v0–v2: relayed as they are.
//
//   - The name that a client logs in by is read along, for quotas, and believed
//     when the broker has accepted the login: PLAIN's and SCRAM's user, and for
//     OAUTHBEARER the authorization id, which brokers hold against the token, or
//     the token's sub claim. Secrets are not kept.
//   - A name that does not show stays unknown: other mechanisms, opaque tokens,
//     and SCRAM with a delegation token, whose owner only brokers know.
//   - A login may be repeated (KIP-368).

// anonymous is the principal of those who don't log in.
const anonymous = "ANONYMOUS"

// login is who a client is, as far as its login shows.
type login struct {
	mechanism string                 // reader only
	tried     string                 // reader only: SCRAM's name, until its second message
	begun     atomic.Bool            // the client has asked for a login
	name      atomic.Pointer[string] // the broker accepted it; nil: unknown
}

// user is ok when the name is known.
func (l *login) user(oneIdentity bool) (name string, ok bool) {
	if n := l.name.Load(); n != nil {
		return *n, true
	}
	return anonymous, !l.begun.Load() && !oneIdentity
}

func (c *conn) saslHandshake(r *request) error {
	if c.p.opt.Quotas == nil {
		return nil
	}
	c.login.begun.Store(true)
	c.login.mechanism, c.login.tried = "", ""
	req := kmsg.NewPtrSASLHandshakeRequest()
	if c.decodeRequest(r, req) == nil { // else the broker says what it thinks of it
		c.login.mechanism = req.Mechanism
	}
	return nil
}

func (c *conn) saslAuthenticate(r *request) error {
	if c.p.opt.Quotas == nil {
		return nil
	}
	l := &c.login
	l.begun.Store(true)
	req := kmsg.NewPtrSASLAuthenticateRequest()
	if c.decodeRequest(r, req) != nil {
		return nil
	}
	name, known := "", false
	accepted := func(answer []byte) bool { return len(answer) == 0 }
	switch {
	case l.mechanism == "PLAIN":
		name, known = plainName(req.SASLAuthBytes)
	case l.mechanism == "OAUTHBEARER":
		// Another answer than none is an error that the client has to take.
		name, known = bearerName(req.SASLAuthBytes)
	case strings.HasPrefix(l.mechanism, "SCRAM-"):
		if first, ok := scramName(req.SASLAuthBytes); ok {
			l.tried = first
			return nil // the proof comes with the next message
		}
		name, known = l.tried, l.tried != ""
		l.tried = ""
		accepted = func(answer []byte) bool { return bytes.HasPrefix(answer, []byte("v=")) }
	}
	r.answer = func(c *conn, r *request, in *frame) ([][]byte, error) {
		resp := kmsg.NewPtrSASLAuthenticateResponse()
		if decodeResponse(r, in, resp) != nil || resp.ErrorCode != 0 {
			return nil, nil
		}
		if known && accepted(resp.SASLAuthBytes) {
			c.login.name.Store(&name)
		} else {
			c.login.name.Store(nil)
		}
		return nil, nil
	}
	return nil
}

// plainName is the authentication id of RFC 4616's message. Brokers take no
// other authorization id than the same.
func plainName(message []byte) (string, bool) {
	parts := bytes.Split(message, []byte{0})
	if len(parts) != 3 || len(parts[1]) == 0 {
		return "", false
	}
	return string(parts[1]), true
}

// gs2 takes the header of RFC 5801 off a first message: "n," and perhaps "a="
// and a name, "," and the rest.
func gs2(message []byte) (authzid, rest string, ok bool) {
	parts := strings.SplitN(string(message), ",", 3)
	if len(parts) != 3 || parts[0] != "n" && parts[0] != "y" && !strings.HasPrefix(parts[0], "p=") {
		return "", "", false
	}
	authzid, named := strings.CutPrefix(parts[1], "a=")
	return saslName(authzid), parts[2], named || parts[1] == ""
}

// saslName undoes RFC 5802's escapes.
func saslName(s string) string {
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s)
}

// scramName is ok for SCRAM's first message; the name is "" when it is of no
// use.
func scramName(message []byte) (name string, ok bool) {
	_, bare, ok := gs2(message)
	if !ok {
		return "", false
	}
	for i, attribute := range strings.Split(bare, ",") {
		switch {
		case i == 0:
			name, ok = strings.CutPrefix(attribute, "n=")
		case attribute == "tokenauth=true":
			return "", ok
		}
	}
	return saslName(name), ok
}

// bearerName reads RFC 7628's message, and in it a JWT.
func bearerName(message []byte) (string, bool) {
	authzid, rest, ok := gs2(message)
	if !ok || authzid != "" {
		return authzid, ok
	}
	for _, pair := range strings.Split(rest, "\x01") {
		token, found := strings.CutPrefix(pair, "auth=Bearer ")
		parts := strings.Split(token, ".")
		if !found || len(parts) != 3 {
			continue
		}
		payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
		var claims struct {
			Sub string `json:"sub"`
		}
		if err == nil && json.Unmarshal(payload, &claims) == nil {
			return claims.Sub, claims.Sub != ""
		}
	}
	return "", false
}
