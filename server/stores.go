package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

const (
	// storeAttempts of one request; the writer tries on by itself.
	storeAttempts = 3
	// openAtStart is how long the start waits for a store.
	openAtStart = 10 * time.Second
	// openAgain is between attempts in the background.
	openAgain = 2 * time.Second
)

// OpenStore opens a store of the configuration, without anything around it.
func OpenStore(st config.Store, connections int) (objstore.Store, error) {
	switch st.Scheme {
	case "file":
		return objstore.OpenFile(st.Dir)
	case "s3":
		return objstore.OpenS3(objstore.S3Options{
			Endpoint: st.Endpoint, Region: st.Region, Bucket: st.Bucket, Prefix: st.Prefix,
			AccessKey: st.AccessKey, SecretKey: st.SecretKey, PathStyle: st.PathStyle, MaxConnections: connections,
		})
	}
	return nil, fmt.Errorf("no store has the scheme %q", st.Scheme)
}

// openStores opens every store of the configuration. One that does not answer
// is tried again in the background, and its topics' batches go inline until
// then; one that must not be used ends the start.
func (s *Server) openStores(ctx, background context.Context) error {
	meters := objstore.NewMeters(s.metrics)
	l := s.config.Limits
	for name, st := range s.config.Stores {
		open := func(ctx context.Context) error {
			store, err := OpenStore(st, l.PutConcurrency+l.GetConcurrency)
			if err != nil {
				return err
			}
			store = objstore.NewMetered(store, name, meters)
			store = objstore.NewLimited(store, l.PutConcurrency, l.GetConcurrency)
			store = objstore.NewRetrying(store, storeAttempts)
			ring, err := keyring.Open(ctx, store, s.cluster.ClusterID(), keyring.Options{Logger: s.log})
			if err != nil {
				return err
			}
			s.tier.AddStore(name, diskless.StoreHandle{Store: store, Ring: ring})
			return nil
		}
		atStart, cancel := context.WithTimeout(ctx, openAtStart)
		err := open(atStart)
		cancel()
		if err == nil {
			continue
		}
		if unusable(err) {
			return fmt.Errorf("store %s: %w", name, err)
		}
		s.log.Error().Err(err).Str("store", name).Msg("the store does not answer; its topics' batches go inline until it does")
		s.tier.Expect(name, err)
		s.background(func() { s.keepOpening(background, name, open) })
	}
	return nil
}

// unusable reports whether waiting cannot help.
func unusable(err error) bool {
	return errors.Is(err, keyring.ErrForeign) || errors.Is(err, keyring.ErrKeysMissing) || errors.Is(err, keyring.ErrGarbled) || errors.Is(err, objstore.ErrKey)
}

func (s *Server) keepOpening(ctx context.Context, name string, open func(context.Context) error) {
	for {
		select {
		case <-time.After(openAgain):
		case <-ctx.Done():
			return
		}
		err := open(ctx)
		if err == nil {
			return
		}
		s.tier.Expect(name, err)
		if unusable(err) {
			s.log.Error().Err(err).Str("store", name).Msg("the store must not be used; its topics' batches stay inline")
			return
		}
	}
}
