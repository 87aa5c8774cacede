package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-kafka/sluice/harness"
)

// gauge is the value of a metric of one section.
func (r *rig) gauge(s *Server, name string) float64 {
	r.Helper()
	families, err := s.Metrics().Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	r.Fatalf("there is no %s", name)
	return 0
}

func TestACertificateIsRenewedWithoutARestart(t *testing.T) {
	r := newRig(t)
	ca := harness.NewCA(t)
	dir := t.TempDir()
	cert, key := ca.Files(t, dir, "127.0.0.1")
	r.base = harness.Ports(t, 4)
	cfg := r.config("")
	cfg.Listen.TLS.Cert, cfg.Listen.TLS.Key = cert, key
	s := r.start(cfg)

	addr := fmt.Sprintf("127.0.0.1:%d", r.base)
	trusts := &tls.Config{RootCAs: ca.Pool()}
	shown := func() *x509.Certificate {
		t.Helper()
		conn, err := tls.Dial("tcp", addr, trusts)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	first := shown()
	old, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DialTLSConfig(trusts))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	expires := r.gauge(s, "sluice_certificate_expires_timestamp_seconds")
	if expires != float64(first.NotAfter.Unix()) {
		t.Errorf("the metric says that it expires at %v, it does at %v", expires, first.NotAfter.Unix())
	}

	// Renewed in two steps: between them the pair does not fit.
	newCert, newKey := ca.Issue(t, "127.0.0.1")
	harness.Write(t, cert, newCert)
	if now := shown(); now.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Error("a certificate without its key is shown")
	}
	harness.Write(t, key, newKey)
	second := first.SerialNumber
	r.eventually("the new certificate is shown", func() bool {
		second = shown().SerialNumber
		return second.Cmp(first.SerialNumber) != 0
	})
	if err := old.Ping(t.Context()); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	if _, h := r.ready(); len(h.Degraded) > 0 {
		t.Errorf("/readyz says %q", h.Degraded)
	}

	for name, broken := range map[string]func(){
		"no certificate": func() { harness.Write(t, cert, []byte("not PEM")) },
		"another's key": func() {
			_, other := ca.Issue(t, "127.0.0.1")
			harness.Write(t, key, other)
		},
	} {
		refused := r.gauge(s, "sluice_certificate_reload_errors_total")
		broken()
		r.eventually(name+" is told of", func() bool {
			_, h := r.ready()
			return len(h.Degraded) == 1 && strings.Contains(h.Degraded[0], "listen.tls has changed and cannot be used") &&
				r.gauge(s, "sluice_certificate_reload_errors_total") == refused+1
		})
		if !strings.Contains(r.log.String(), "changed certificate files cannot be used") {
			t.Errorf("%s: the log does not tell", name)
		}
		if now := shown().SerialNumber; now.Cmp(second) != 0 {
			t.Errorf("%s: another certificate is shown", name)
		}
		third, thirdKey := ca.Issue(t, "127.0.0.1")
		harness.Write(t, key, thirdKey)
		harness.Write(t, cert, third)
		var now *big.Int
		r.eventually("a good one is shown after "+name, func() bool {
			now = shown().SerialNumber
			_, h := r.ready()
			return now.Cmp(second) != 0 && len(h.Degraded) == 0
		})
		second = now
	}
}

func TestAuthoritiesAreReadAgainWithoutARestart(t *testing.T) {
	before, after := harness.NewCA(t), harness.NewCA(t)
	var shown atomic.Pointer[tls.Certificate]
	show := func(ca *harness.CA) {
		t.Helper()
		cert, key := ca.Issue(t, "127.0.0.1")
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		shown.Store(&pair)
	}
	show(before)
	r := newRig(t, kfake.TLS(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown.Load(), nil }}))
	file := before.File(t, t.TempDir())
	cfg := r.config("")
	cfg.Kafka.TLS.Enabled, cfg.Kafka.TLS.CA = true, file
	s := r.start(cfg)
	connects := func() error {
		conn, err := s.Cluster().Dial(t.Context(), 0)
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := connects(); err != nil {
		t.Fatal(err)
	}
	show(after)
	if err := connects(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Fatalf("a broker whose authority is not in the file: %v", err)
	}
	harness.Write(t, file, []byte("not PEM"))
	r.eventually("a file without a certificate is told of", func() bool {
		_, h := r.ready()
		return len(h.Degraded) == 1 && strings.Contains(h.Degraded[0], "kafka.tls.ca has changed and cannot be used") && strings.Contains(h.Degraded[0], "a file of 1 certificates")
	})
	show(before)
	if err := connects(); err != nil {
		t.Errorf("those from before do not stay: %v", err)
	}
	show(after)
	harness.Write(t, file, append(slices.Clone(before.PEM), after.PEM...))
	r.eventually("the new authority is trusted", func() bool { return connects() == nil })
	show(before)
	if err := connects(); err != nil {
		t.Errorf("the old authority is in the file too: %v", err)
	}
	harness.Write(t, file, after.PEM)
	r.eventually("the old authority is trusted no longer", func() bool { return connects() != nil })
	if _, h := r.ready(); len(h.Degraded) > 0 {
		t.Errorf("/readyz says %q", h.Degraded)
	}
}
