package proxy

import (
	"encoding/base64"
	"slices"
	"testing"

	"github.com/sluice-kafka/sluice/tiers"
)

// What Kafka 4.3.1's own classes (Rate, and the arithmetic of QuotaUtils) make
// of the same bytes at the same times.
func TestMeterIsKafkas(t *testing.T) {
	for _, c := range []struct {
		seed, quota int64
		want        []int32
	}{
		{1, 1000, []int32{0, 0, 0, 2411, 5628, 6885, 8962, 13188, 13340, 14740, 14331, 15234, 16317, 18261, 20797, 11496, 10648, 5307, 5547, 5620, 6130, 3170, 4110, 0}},
		{2, 50000, []int32{0, 0, 0, 0, 470, 236, 671, 0, 0, 0, 0, 0, 0, 359, 773, 0, 0, 0, 0, 0, 921, 3620, 4659, 5247}},
		{3, 1048576, []int32{0, 0, 0, 0, 0, 537, 1280, 4976, 8483, 10480, 12213, 7645, 8962, 6234, 7395, 9273, 11081, 12547, 14067, 7717, 8598, 9884, 9526, 10575}},
	} {
		var m meter
		x, now := c.seed, int64(1_700_000_000_000)
		next := func() int64 {
			x = (x*1103515245 + 12345) & 0x7fffffff
			return x
		}
		var got []int32
		for i := range c.want {
			pause := int64(1500)
			if i%8 == 7 {
				pause = 14000 // samples expire
			}
			now += (next() >> 8) % pause
			m.record(float64((next()>>4)%(c.quota*4)), now)
			got = append(got, m.throttleTime(float64(c.quota), now))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("at %d bytes a second\n%v, Kafka\n%v", c.quota, got, c.want)
		}
	}
	var m meter
	m.record(1<<40, 1)
	if ms := m.throttleTime(1, 1); int64(ms) != maxThrottle.Milliseconds() {
		t.Errorf("throttled for %d ms, want the most there is", ms)
	}
}

func TestRatesAreBounded(t *testing.T) {
	th := throttle{rates: make(map[rateKey]*meter)}
	for i := range maxRates {
		m := &meter{}
		m.record(1, int64(i%2)*expireAge)
		th.rates[rateKey{node: int32(i)}] = m
	}
	th.sweep(expireAge)
	if len(th.rates) != maxRates/2 {
		t.Errorf("%d rates are left, want those that are not idle, %d", len(th.rates), maxRates/2)
	}
	for i := range maxRates {
		m := &meter{}
		m.record(1, expireAge)
		th.rates[rateKey{kind: tiers.FetchQuota, node: int32(i)}] = m
	}
	th.sweep(expireAge)
	if len(th.rates) != maxRates-1 {
		t.Errorf("%d rates are left, want room for one more", len(th.rates))
	}
}

func TestNamesInLogins(t *testing.T) {
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	bearer := func(header, token string) string { return header + "\x01auth=Bearer " + token + "\x01\x01" }
	for _, c := range []struct {
		what, message string
		read          func([]byte) (string, bool)
		want          string
		ok            bool
	}{
		{"PLAIN", "\x00alice\x00secret", plainName, "alice", true},
		{"PLAIN with an authorization id", "alice\x00alice\x00secret", plainName, "alice", true},
		{"PLAIN without a user", "\x00\x00secret", plainName, "", false},
		{"no PLAIN", "alice", plainName, "", false},
		{"SCRAM", "n,,n=alice,r=nonce", scramName, "alice", true},
		{"SCRAM, a name with signs", "n,a=x,n=a=2Cb=3Dc,r=nonce", scramName, "a,b=c", true},
		{"SCRAM with an extension", "n,,n=alice,r=nonce,other=1", scramName, "alice", true},
		{"SCRAM with a delegation token", "n,,n=token-id,r=nonce,tokenauth=true", scramName, "", true},
		{"SCRAM's second message", "c=biws,r=nonce,p=proof", scramName, "", false},
		{"no SCRAM", "anything", scramName, "", false},
		{"a JWT", bearer("n,,", jwt(`{"sub":"alice","exp":1}`)), bearerName, "alice", true},
		{"an authorization id", bearer("n,a=bob,", "opaque"), bearerName, "bob", true},
		{"an opaque token", bearer("n,,", "opaque"), bearerName, "", false},
		{"a JWT without a subject", bearer("n,,", jwt(`{}`)), bearerName, "", false},
		{"a JWT that is none", bearer("n,,", "e30.%%%.c2ln"), bearerName, "", false},
		{"no token", "n,,\x01\x01", bearerName, "", false},
	} {
		if got, ok := c.read([]byte(c.message)); got != c.want || ok != c.ok {
			t.Errorf("%s: %q (%v), want %q (%v)", c.what, got, ok, c.want, c.ok)
		}
	}
	var l login
	if name, ok := l.user(false); name != "ANONYMOUS" || !ok {
		t.Errorf("without a login: %s (%v)", name, ok)
	}
	if _, ok := l.user(true); ok {
		t.Error("without a login, but known by sluice's certificate")
	}
	l.begun.Store(true)
	if _, ok := l.user(false); ok {
		t.Error("a login that shows no name")
	}
}
