package upkeep

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/sluice-kafka/sluice/diskless/placeholder"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Remains is what of a topic is still in objects, as its logs say from end to
// end. The JSON names are stable.
type Remains struct {
	Placeholders int64      `json:"placeholders"`
	Records      int64      `json:"records"`
	Bytes        int64      `json:"bytes"`                      // of payloads
	Last         *time.Time `json:"last_placeholder,omitempty"` // largest timestamp
	Partitions   []int32    `json:"partitions,omitempty"`       // that hold some
	Offset       int64      `json:"last_offset,omitempty"`      // of the last one in the last of these
}

// Remains walks a topic's logs to where they end now, and counts its placeholders.
// Whether they verify or can be read is Fsck's business. An error is that some log
// could not be walked to its end: then nothing is known.
func (a *Access) Remains(ctx context.Context, topic string, fetchesPerSecond float64) (all Remains, err error) {
	logs, err := a.Cluster.Logs(ctx, topic)
	if err != nil {
		return all, err
	}
	pace := limiter(fetchesPerSecond, 1)
	each := make([]Remains, len(logs))
	var walking errgroup.Group
	walking.SetLimit(logsAtATime)
	for i, l := range logs {
		walking.Go(func() (err error) {
			each[i], err = a.remainsOf(ctx, l, pace)
			return err
		})
	}
	if err := walking.Wait(); err != nil {
		return all, err
	}
	for i, one := range each {
		if one.Placeholders == 0 {
			continue
		}
		all.Placeholders += one.Placeholders
		all.Records += one.Records
		all.Bytes += one.Bytes
		all.Partitions, all.Offset = append(all.Partitions, logs[i].Partition), one.Offset
		if all.Last == nil || one.Last.After(*all.Last) {
			all.Last = one.Last
		}
	}
	return all, nil
}

func (a *Access) remainsOf(ctx context.Context, l lowlatency.Log, pace *rate.Limiter) (r Remains, err error) {
	end := l.End
	for next := l.Start; next < end; {
		if err := pace.Wait(ctx); err != nil {
			return r, err
		}
		f, err := a.fetchFrom(ctx, &l, func(ctx context.Context, l lowlatency.Log) (lowlatency.Fetched, error) {
			f, err := a.Cluster.FetchAll(ctx, l, next, mostKept)
			if _, _, ok := wire.NextBatch(f.Records); err == nil && !ok {
				err = errNothing
			}
			return f, err
		})
		if errors.Is(err, kerr.OffsetOutOfRange) {
			now, gone, lookErr := a.relocate(ctx, l)
			if gone || lookErr != nil || now.Start <= next {
				return r, errors.Join(err, lookErr)
			}
			next, r = now.Start, Remains{} // all that was counted is below it
			continue
		}
		if err != nil {
			return r, err
		}
		before := next
		for records := f.Records; ; {
			b, rest, ok := wire.NextBatch(records)
			if !ok {
				break
			}
			records = rest
			if b.IsV2() && b.CRC() != b.ComputeCRC() || !b.IsV2() && !soundOld(b) {
				return r, fmt.Errorf("partition %d, offset %d: the batch in the broker's log is garbled, and it cannot be told what it was: `sluice fsck` names the remedy", l.Partition, b.BaseOffset())
			}
			if !b.IsV2() {
				next = max(next, b.BaseOffset()+1)
				continue
			}
			after := b.BaseOffset() + int64(b.LastOffsetDelta()) + 1
			if after <= next {
				continue
			}
			next = after
			if !placeholder.Candidate(b) {
				continue
			}
			// One that cannot be parsed counts: readers are not given it.
			signed, is, err := placeholder.Parse(b)
			if !is && err == nil {
				continue
			}
			r.Placeholders++
			r.Records += int64(b.NumRecords())
			r.Bytes += int64(signed.Ref.Length)
			r.Offset = after - 1
			if when := time.UnixMilli(b.MaxTimestamp()).UTC(); r.Last == nil || when.After(*r.Last) {
				r.Last = &when
			}
		}
		if next == before {
			return r, errNothing
		}
	}
	return r, nil
}

var errNothing = errors.New("the broker gives no whole batch below the end of its log")
