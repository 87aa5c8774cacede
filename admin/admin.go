// Package admin is the operator's HTTP listener: /metrics, /livez and /readyz.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// Health is what /readyz says. Ready depends on listeners and brokers only: an
// object store's outage must not make a balancer drop the clients of
// low-latency topics too.
type Health struct {
	Ready    bool     `json:"ready"`
	Reasons  []string `json:"reasons,omitempty"`  // why not ready
	Degraded []string `json:"degraded,omitempty"` // what works less well, and what to do
}

const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	maxHeader    = 16 << 10
)

// Server is a running admin listener.
type Server struct {
	http   *http.Server
	addr   net.Addr
	closed chan struct{} // the listener is
}

// Start listens at addr. health is asked at every /readyz.
func Start(addr string, gather prometheus.Gatherer, health func() Health, log zerolog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin listener (admin: in the configuration): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gather, promhttp.HandlerOpts{Timeout: writeTimeout, MaxRequestsInFlight: 8}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := health()
		w.Header().Set("Content-Type", "application/json")
		if !h.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h)
	})
	s := &Server{addr: l.Addr(), closed: make(chan struct{}), http: &http.Server{
		Handler: mux, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeader,
	}}
	go func() {
		defer close(s.closed)
		if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("the admin listener ended")
		}
	}()
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.addr }

// Close stops listening and waits for requests in progress until ctx ends. The
// port is free when it returns.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("admin: %w", err), s.http.Close())
	}
	// Shutdown does not know a listener that is only about to be served.
	<-s.closed
	return err
}
