package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// lookAtFiles is how often the files of certificates are looked at. Whoever
// renews them writes over them, renames, or swaps links: reading them finds all
// of that, on every file system.
const lookAtFiles = time.Second

// Certificates are the key pairs that a replica shows and the authorities that it
// trusts, read again when their files change.
type Certificates struct {
	log     zerolog.Logger
	expires *prometheus.GaugeVec
	refused *prometheus.CounterVec
	all     []*watched
}

// NewCertificates has none yet.
func NewCertificates(log zerolog.Logger, reg prometheus.Registerer) *Certificates {
	c := &Certificates{
		log:     log,
		expires: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_certificate_expires_timestamp_seconds", Help: "When the certificate that is shown expires, in Unix time, by its section of the configuration."}, []string{"section"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_certificate_reload_errors_total", Help: "Times that changed files of certificates could not be used, by their section of the configuration."}, []string{"section"}),
	}
	reg.MustRegister(c.expires, c.refused)
	return c
}

// watched are files that belong together.
type watched struct {
	section string // of the configuration
	paths   []string
	in      *Certificates
	use     func(content [][]byte) error // puts in force what was read, or leaves all as it is
	inForce func() string                // in words
	problem atomic.Pointer[string]       // why the files as they are now are not used

	used, seen [][]byte // content in use, and at the last look
	said       bool     // that what was seen cannot be used
}

// add reads files. At the start, ones that cannot be used are an error.
func (c *Certificates) add(w *watched) error {
	w.in = c
	content, err := w.read()
	if err == nil {
		err = w.use(content)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", w.section, err)
	}
	w.used, w.seen = content, content
	c.refused.WithLabelValues(w.section)
	c.all = append(c.all, w)
	return nil
}

// keyPair is a certificate that is shown. Handshakes get what was last read whole.
type keyPair struct {
	current atomic.Pointer[tls.Certificate]
}

func (c *Certificates) keyPair(section, cert, key string) (*keyPair, error) {
	k := &keyPair{}
	return k, c.add(&watched{
		section: section, paths: []string{cert, key},
		use: func(content [][]byte) error {
			pair, err := tls.X509KeyPair(content[0], content[1])
			if err != nil {
				return fmt.Errorf("%s and %s: %w", cert, key, err)
			}
			c.expires.WithLabelValues(section).Set(float64(pair.Leaf.NotAfter.Unix()))
			k.current.Store(&pair)
			return nil
		},
		inForce: func() string {
			return "a certificate that expires " + k.current.Load().Leaf.NotAfter.UTC().Format(time.RFC3339)
		},
	})
}

// authorities returns those that are trusted, at any time.
func (c *Certificates) authorities(section, file string) (func() *x509.CertPool, error) {
	var current atomic.Pointer[x509.CertPool]
	n := 0
	return current.Load, c.add(&watched{
		section: section, paths: []string{file},
		use: func(content [][]byte) error {
			pool, err := authoritiesIn(file, content[0])
			if err != nil {
				return err
			}
			n = bytes.Count(content[0], []byte("-----BEGIN CERTIFICATE-----"))
			current.Store(pool)
			return nil
		},
		inForce: func() string { return fmt.Sprintf("a file of %d certificates", n) },
	})
}

func authoritiesIn(file string, pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

// watch looks at the files until ctx ends.
func (c *Certificates) watch(ctx context.Context) {
	tick := time.NewTicker(lookAtFiles)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, one := range c.all {
				one.look()
			}
		case <-ctx.Done():
			return
		}
	}
}

// problems are what is wrong with files now.
func (c *Certificates) problems() (out []string) {
	for _, one := range c.all {
		if p := one.problem.Load(); p != nil {
			out = append(out, *p)
		}
	}
	return out
}

func (w *watched) read() (content [][]byte, err error) {
	for _, path := range w.paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		content = append(content, b)
	}
	return content, nil
}

func same(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// look takes changed files when they can be used, at once. When they cannot,
// somebody may be in the middle of writing them: only what is still the same at
// the next look is told of, once.
func (w *watched) look() {
	content, err := w.read()
	settled := same(content, w.seen)
	if w.seen = content; !settled {
		w.said = false
	}
	if err == nil && !same(content, w.used) {
		if err = w.use(content); err == nil {
			w.used = content
			w.in.log.Info().Str("section", w.section).Str("in_force", w.inForce()).Msg("changed certificate files were read: new connections use them")
		}
	}
	if err == nil {
		w.problem.Store(nil)
		return
	}
	if !settled || w.said {
		return
	}
	w.said = true
	w.in.refused.WithLabelValues(w.section).Inc()
	problem := fmt.Sprintf("%s has changed and cannot be used: %v; what was read before stays: %s", w.section, err, w.inForce())
	w.problem.Store(&problem)
	w.in.log.Error().Err(err).Str("section", w.section).Str("in_force", w.inForce()).
		Msg("changed certificate files cannot be used: what was read before stays; write PEM files, of a certificate chain its private key too")
}

func (k *keyPair) forClients() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}

func (k *keyPair) forBrokers(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return k.current.Load(), nil
}
