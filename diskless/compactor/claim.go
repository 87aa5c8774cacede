package compactor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/diskless/segment"
)

// claim says who works on a window. It only saves work: two that compact the
// same window do nothing wrong, for the first manifest wins.
type claim struct {
	Worker string `json:"worker"`
	Beats  int    `json:"beats"` // so that no two writes are the same

	key     string
	renewed time.Time
}

func claimKey(start time.Time) string { return segment.ClaimsPrefix + start.Format("20060102T150405") }

func mergeClaimKey(start time.Time) string { return claimKey(start) + "-merge" }

// beatPrefix is where a compactor asks for the store's time.
const beatPrefix = segment.ClaimsPrefix + "beat-"

func (c *Compactor) body(cl *claim) []byte {
	b, _ := json.Marshal(cl) // of two plain fields
	return b
}

// claim takes a window, unless another compactor has it and shows signs of life.
func (c *Compactor) claim(ctx context.Context, key string) (bool, error) {
	cl := &claim{Worker: c.worker, key: key, renewed: time.Now()}
	if err := c.wait(ctx, 0); err != nil {
		return false, err
	}
	err := c.store.PutIfAbsent(ctx, cl.key, c.body(cl))
	if errors.Is(err, objstore.ErrExists) {
		alive, err := c.alive(ctx, cl.key)
		if alive || err != nil {
			return false, err
		}
		c.log.Info().Str("store", c.opt.Name).Str("claim", cl.key).Msg("a compactor has gone silent: its window is taken over")
		err = c.store.Put(ctx, cl.key, c.body(cl))
		if err != nil {
			return false, fmt.Errorf("taking over %s: %w", cl.key, err)
		}
	} else if err != nil {
		return false, fmt.Errorf("claiming %s: %w", cl.key, err)
	}
	c.held = cl
	return true, nil
}

// alive reports whether a claim was renewed lately, by the store's own clock: it
// is asked by an object of our own.
func (c *Compactor) alive(ctx context.Context, key string) (bool, error) {
	beat := beatPrefix + c.worker
	if err := c.store.Put(ctx, beat, []byte(c.worker)); err != nil {
		return false, fmt.Errorf("asking for the store's time: %w", err)
	}
	defer func() { _ = c.store.Delete(context.WithoutCancel(ctx), beat) }()
	var now, renewed time.Time
	err := c.store.List(ctx, segment.ClaimsPrefix, "", func(i objstore.Info) error {
		switch i.Key {
		case beat:
			now = i.LastModified
		case key:
			renewed = i.LastModified
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("listing claims: %w", err)
	}
	if now.IsZero() {
		return true, nil // the store does not list what was just put: in doubt
	}
	return now.Sub(renewed) < c.limits.ClaimTimeout, nil
}

// renew keeps the claim that is held from being taken for a dead one's.
func (c *Compactor) renew(ctx context.Context) error {
	if c.held == nil || time.Since(c.held.renewed) < c.limits.ClaimTimeout/4 {
		return nil
	}
	c.held.Beats++
	c.held.renewed = time.Now()
	if err := c.store.Put(ctx, c.held.key, c.body(c.held)); err != nil {
		return fmt.Errorf("renewing %s: %w", c.held.key, err)
	}
	return nil
}

// release gives the window back, also when ctx has ended: whoever comes next
// need not wait.
func (c *Compactor) release(ctx context.Context) {
	if c.held == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := c.store.Delete(ctx, c.held.key); err != nil {
		c.log.Debug().Err(err).Str("claim", c.held.key).Msg("a claim stays until it is too old")
	}
	c.held = nil
}

// releaseTimeout bounds what is done when everything ends.
const releaseTimeout = 2 * time.Second

// claimsGoAfter is when what crashed compactors left is removed.
const claimsGoAfter = 24 * time.Hour

// dropOldClaims removes what crashed compactors left. Their age is by the
// store's clock, against the newest of them: with only old ones there is no
// hurry.
func (c *Compactor) dropOldClaims(ctx context.Context) {
	var all []objstore.Info
	var newest time.Time
	err := c.store.List(ctx, segment.ClaimsPrefix, "", func(i objstore.Info) error {
		all = append(all, i)
		if i.LastModified.After(newest) {
			newest = i.LastModified
		}
		return nil
	})
	for _, i := range all {
		if err == nil && newest.Sub(i.LastModified) > claimsGoAfter {
			err = c.store.Delete(ctx, i.Key)
		}
	}
	if err != nil {
		c.log.Debug().Err(err).Msg("old claims stay for now")
	}
}
