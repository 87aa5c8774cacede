package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// Check is one thing that Probe tried.
type Check struct {
	Name string
	Err  error
}

const probePrefix = "sluice/probe/"

// Probe tries everything that sluice needs of a store, on an object of its own
// that it removes again. It stops at the first check that later ones need. A
// clusterID other than "" is held against the marker, which is not written.
func Probe(ctx context.Context, store objstore.Store, clusterID string) []Check {
	var checks []Check
	try := func(name string, fn func() error) bool {
		err := fn()
		checks = append(checks, Check{name, err})
		return err == nil
	}
	random := rand.Text()
	key, body := probePrefix+random, []byte("sluice probe "+random)
	if !try("put an object", func() error { return store.Put(ctx, key, body) }) {
		return checks
	}
	defer func() { _ = store.Delete(context.WithoutCancel(ctx), key) }()
	same := func(want []byte, offset, length int64) func() error {
		return func() error {
			got, err := store.Get(ctx, key, offset, length)
			if err == nil && !bytes.Equal(got, want) {
				return fmt.Errorf("%d bytes came back, not the %d that were put", len(got), len(want))
			}
			return err
		}
	}
	try("get it", same(body, 0, -1))
	try("get a range of it", same(body[3:9], 3, 6))
	try("conditional put refuses an existing key", func() error {
		err := store.PutIfAbsent(ctx, key, []byte("other"))
		switch {
		case errors.Is(err, objstore.ErrExists):
			return nil
		case err == nil:
			return errors.New("it overwrote the object: the store ignores If-None-Match, and two replicas could make different keys; use a store or version that honours it")
		}
		return err
	})
	try("conditional put makes a new key", func() error {
		fresh := key + "-new"
		defer func() { _ = store.Delete(context.WithoutCancel(ctx), fresh) }()
		return store.PutIfAbsent(ctx, fresh, body)
	})
	try("list it", func() error {
		seen := false
		err := store.List(ctx, key, "", func(objstore.Info) error { seen = true; return nil })
		if err == nil && !seen {
			return errors.New("it is not listed")
		}
		return err
	})
	try("delete it", func() error { return store.Delete(ctx, key) })
	if clusterID != "" {
		try("the prefix is this cluster's or free", func() error {
			err := CheckMarker(ctx, store, clusterID)
			if errors.Is(err, objstore.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	return checks
}
