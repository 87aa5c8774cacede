package server

import (
	"crypto/fips140"
	"crypto/tls"
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/lowlatency"
)

// ClusterOptions says how a configuration reaches its cluster.
func ClusterOptions(cfg *config.Config, log zerolog.Logger, reg prometheus.Registerer) (lowlatency.Options, error) {
	o := lowlatency.Options{
		Bootstrap:      cfg.Kafka.Bootstrap,
		DialTimeout:    cfg.Limits.DialTimeout,
		DialsPerBroker: cfg.Limits.DialsPerBroker,
		DialQueue:      cfg.Limits.DialQueue,
		InRange: func(id int32) bool {
			_, ok := cfg.Listen.NodeIDs.Position(id)
			return ok
		},
		Logger:  log,
		Metrics: reg,
	}
	if cfg.Quotas.Enabled {
		o.QuotaInterval = cfg.Quotas.Refresh
	}
	var err error
	if o.TLS, err = kafkaTLS(cfg.Kafka.TLS); err != nil {
		return o, fmt.Errorf("kafka.tls: %w", err)
	}
	o.SASL, err = mechanism(cfg.Kafka.SASL)
	return o, err
}

func kafkaTLS(t config.KafkaTLS) (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	out := &tls.Config{ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify, MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, err
		}
		if out.RootCAs, err = authoritiesIn(t.CA, pem); err != nil {
			return nil, err
		}
	}
	if t.Cert != "" {
		cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

// approvedKey is the least of an HMAC, in bytes, that FIPS 140-3 approves. Go
// panics at less where nothing else is allowed.
const approvedKey = 14

func mechanism(s config.SASL) (sasl.Mechanism, error) {
	if strings.HasPrefix(s.Mechanism, "SCRAM-") && len(s.Password) < approvedKey && fips140.Enforced() {
		return nil, fmt.Errorf("kafka.sasl.password is shorter than %d bytes, and SCRAM may not use it with GODEBUG=fips140=only: take a longer one, or PLAIN over TLS", approvedKey)
	}
	switch s.Mechanism {
	case "":
		return nil, nil
	case "PLAIN":
		return plain.Auth{User: s.Username, Pass: s.Password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: s.Username, Pass: s.Password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: s.Username, Pass: s.Password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("kafka.sasl.mechanism %s is not supported", s.Mechanism)
}
