package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// lookAtFiles is how often the files of a certificate are looked at. Whoever
// renews them writes over them, renames, or swaps links: reading them finds all
// of that, on every file system.
const lookAtFiles = time.Second

// Certificates are the key pairs that a replica shows, read again when their
// files change.
type Certificates struct {
	log     zerolog.Logger
	expires *prometheus.GaugeVec
	refused *prometheus.CounterVec
	all     []*certificate
}

// NewCertificates has none yet.
func NewCertificates(log zerolog.Logger, reg prometheus.Registerer) *Certificates {
	c := &Certificates{
		log:     log,
		expires: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_certificate_expires_timestamp_seconds", Help: "When the certificate that is shown expires, in Unix time, by its section of the configuration."}, []string{"section"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_certificate_reload_errors_total", Help: "Times that changed files of a certificate could not be used, by its section of the configuration."}, []string{"section"}),
	}
	reg.MustRegister(c.expires, c.refused)
	return c
}

// certificate is one of them. Handshakes get what was last read whole.
type certificate struct {
	section   string // of the configuration
	cert, key string // files
	in        *Certificates
	current   atomic.Pointer[tls.Certificate]
	problem   atomic.Pointer[string] // why the files as they are now are not used

	used, seen [2][]byte // content in use, and at the last look
	said       bool      // that what was seen cannot be used
}

// read loads a key pair. At the start, one that cannot be used is an error.
func (c *Certificates) read(section, cert, key string) (*certificate, error) {
	one := &certificate{section: section, cert: cert, key: key, in: c}
	files, err := one.files()
	if err == nil {
		err = one.use(files)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", section, err)
	}
	one.seen = files
	c.refused.WithLabelValues(section)
	c.all = append(c.all, one)
	return one, nil
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

func (c *certificate) files() (out [2][]byte, err error) {
	if out[0], err = os.ReadFile(c.cert); err != nil {
		return out, err
	}
	out[1], err = os.ReadFile(c.key)
	return out, err
}

func same(a, b [2][]byte) bool { return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1]) }

func (c *certificate) use(files [2][]byte) error {
	pair, err := tls.X509KeyPair(files[0], files[1])
	if err != nil {
		return fmt.Errorf("%s and %s: %w", c.cert, c.key, err)
	}
	c.in.expires.WithLabelValues(c.section).Set(float64(pair.Leaf.NotAfter.Unix()))
	c.current.Store(&pair)
	c.used = files
	return nil
}

// look takes changed files when they can be used, at once. When they cannot,
// somebody may be in the middle of writing them: only what is still the same at
// the next look is told of, once.
func (c *certificate) look() {
	files, err := c.files()
	settled := same(files, c.seen)
	if c.seen = files; !settled {
		c.said = false
	}
	if err == nil && !same(files, c.used) {
		if err = c.use(files); err == nil {
			c.in.log.Info().Str("section", c.section).Time("expires", c.current.Load().Leaf.NotAfter).Msg("the certificate was renewed: new connections use it")
		}
	}
	if err == nil {
		c.problem.Store(nil)
		return
	}
	if !settled || c.said {
		return
	}
	c.said = true
	c.in.refused.WithLabelValues(c.section).Inc()
	expires := c.current.Load().Leaf.NotAfter.UTC().Format(time.RFC3339)
	problem := fmt.Sprintf("%s has changed and cannot be used: %v; the certificate from before stays, until %s", c.section, err, expires)
	c.problem.Store(&problem)
	c.in.log.Error().Err(err).Str("section", c.section).Str("expires", expires).
		Msg("changed certificate files cannot be used: the certificate from before stays; write PEM files of one certificate chain and its private key")
}

func (c *certificate) forClients() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
}

func (c *certificate) forBrokers(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}
