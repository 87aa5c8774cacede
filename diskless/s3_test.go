package diskless

import (
	"testing"
	"time"

	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/harness"
	"github.com/sluice-kafka/sluice/tiers"
)

// TestOutageOfARealStore: a real S3 server dies under batches and comes back.
func TestOutageOfARealStore(t *testing.T) {
	server := harness.StartS3(t)
	open := func() objstore.Store {
		s, err := objstore.OpenS3(objstore.S3Options{
			Endpoint: server.Endpoint, Region: server.Region, Bucket: server.Bucket, Prefix: "p",
			AccessKey: server.AccessKey, SecretKey: server.SecretKey, PathStyle: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return objstore.NewRetrying(s, 3)
	}
	store := open()
	limits := outageBudget
	limits.PutTimeout, limits.ProbeInterval = 500*time.Millisecond, 100*time.Millisecond
	tier := newTier(t, store, openRing(t, store), limits)
	class := telemetry()
	class.Linger = 20 * time.Millisecond
	before := send(t, tier, offer{class: class})
	before.placeholder()
	server.Stop()
	send(t, tier, offer{class: class}).wantInline(tiers.InlineUnavailable)
	server.Start(t)
	for deadline := time.Now().Add(time.Minute); !tier.Status()[0].Healthy; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not resume: %+v", tier.Status())
		}
	}
	after := send(t, tier, offer{class: class})
	after.placeholder()
	cold := open()
	reader := newTier(t, cold, openRing(t, cold), Limits{})
	before.wantReadable(reader)
	after.wantReadable(reader)
}
