package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/turns"
)

const (
	// storeAttempts of one request; the writer tries on by itself.
	storeAttempts = 3
	// openTimeout bounds one attempt to open a store; the start waits for one.
	openTimeout = 10 * time.Second
	// openAgain is between attempts in the background.
	openAgain = 2 * time.Second
)

// OpenStore opens a store of the configuration, without anything around it.
func OpenStore(st config.Store, connections int) (objstore.Store, error) {
	return openInTurns(st, connections, nil)
}

// openInTurns is for a replica, where others must find a CPU.
func openInTurns(st config.Store, connections int, t *turns.Turns) (objstore.Store, error) {
	switch st.Scheme {
	case "file":
		return objstore.OpenFile(st.Dir)
	case "s3":
		return objstore.OpenS3(objstore.S3Options{
			Endpoint: st.Endpoint, Region: st.Region, Bucket: st.Bucket, Prefix: st.Prefix,
			AccessKey: st.AccessKey, SecretKey: st.SecretKey, PathStyle: st.PathStyle, MaxConnections: connections,
			Lock: lockRule(st), Turns: t,
		})
	}
	return nil, fmt.Errorf("no store has the scheme %q", st.Scheme)
}

// lockRule is about all that belongs to audit classes.
func lockRule(st config.Store) objstore.LockRule {
	if !st.Locks() {
		return objstore.LockRule{}
	}
	return objstore.LockRule{Prefix: diskless.LockedPrefix, Mode: objstore.LockMode(st.Lock), Retention: st.LockRetention}
}

// CheckLock returns objstore.ErrNoLock when a store shall lock what it cannot.
func CheckLock(ctx context.Context, st config.Store, store objstore.Store) error {
	if !st.Locks() {
		return nil
	}
	locker, ok := store.(objstore.Locker)
	if !ok {
		return objstore.ErrNoLock
	}
	return locker.CanLock(ctx)
}

// openStores opens every store of the configuration. One that does not answer
// is tried again in the background, and its topics' batches go inline until
// then; one that must not be used ends the start.
func (s *Server) openStores(ctx, background context.Context) error {
	meters := objstore.NewMeters(s.metrics)
	var opened errgroup.Group
	for _, st := range s.config.Stores {
		opened.Go(func() error {
			err := s.openStore(ctx, background, st, meters)
			switch {
			case err == nil:
				return nil
			case unusable(err):
				return fmt.Errorf("store %s: %w", st.Name, err)
			}
			s.log.Error().Err(err).Str("store", st.Name).Msg("the store cannot be used yet; its topics' batches go inline, within limits.inline_bytes_*, until it can")
			s.tier.Expect(st.Name, err)
			s.background(func() { s.keepOpening(background, st, meters) })
			return nil
		})
	}
	return opened.Wait()
}

// openStore hands a store to the diskless tier when it is there and this
// cluster's.
func (s *Server) openStore(ctx, background context.Context, st config.Store, meters *objstore.Meters) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	l := s.config.Limits
	gets := getsAtATime(l, len(s.config.Stores))
	store, err := openInTurns(st, l.PutConcurrency+gets, s.turns)
	if err != nil {
		return err
	}
	if err := CheckLock(ctx, st, store); errors.Is(err, objstore.ErrAccess) {
		s.log.Warn().Err(err).Str("store", st.Name).Msg("whether the bucket has object lock cannot be asked; if it has none, batches of audit classes go inline. Grant s3:GetBucketObjectLockConfiguration")
	} else if err != nil {
		return fmt.Errorf("lock: %s: %w", st.Lock, err)
	}
	metered := objstore.NewMetered(store, st.Name, meters)
	store = objstore.NewLimited(metered, l.PutConcurrency, gets)
	store = objstore.NewRetrying(store, storeAttempts)
	ring, err := keyring.Open(ctx, store, s.cluster.ClusterID(), keyring.Options{Logger: s.log})
	if err != nil {
		return err
	}
	s.stores.Store(st.Name, store)
	s.tier.AddStore(st.Name, diskless.StoreHandle{Store: store, Ring: ring})
	if s.compact != nil {
		if err := s.startCompactor(background, st, meters); err != nil {
			return err // this is done again, as a whole
		}
	}
	if s.config.GC.Enabled {
		s.startCollector(st.Name, objstore.NewRetrying(metered, storeAttempts))
	}
	return nil
}

// unusable reports whether waiting cannot help.
func unusable(err error) bool {
	return errors.Is(err, keyring.ErrForeign) || errors.Is(err, keyring.ErrKeysMissing) || errors.Is(err, keyring.ErrGarbled) || errors.Is(err, objstore.ErrKey) || errors.Is(err, objstore.ErrNoLock)
}

func (s *Server) keepOpening(ctx context.Context, st config.Store, meters *objstore.Meters) {
	for {
		select {
		case <-time.After(openAgain):
		case <-ctx.Done():
			return
		}
		err := s.openStore(ctx, ctx, st, meters)
		switch {
		case err == nil:
			s.log.Info().Str("store", st.Name).Msg("the store can be used now")
			return
		case ctx.Err() != nil:
			return
		}
		s.tier.Expect(st.Name, err)
		if unusable(err) {
			s.log.Error().Err(err).Str("store", st.Name).Msg("the store must not be used; its topics' batches stay inline, within limits.inline_bytes_*, until a restart")
			return
		}
	}
}
