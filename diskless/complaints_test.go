package diskless

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-kafka/sluice/tiers"
)

func TestOneStuckReaderDoesNotHideAnotherPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := newComplaints()
		if err != nil {
			t.Fatal(err)
		}
		about := func(partition int32) complaint {
			return complaint{tiers.TopicPartition{Topic: "t", Partition: partition}, 5, "corrupt"}
		}
		lines := 0
		for range 10 * 60 { // a minute of a reader that asks ten times a second
			if c.allow(about(0)) {
				lines++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if lines != 1 {
			t.Errorf("%d lines about one place in a minute", lines)
		}
		if !c.allow(about(1)) {
			t.Error("another place is hidden")
		}
		if !c.allow(about(0)) {
			t.Error("it is not told again after a minute")
		}
		lines = 0
		for p := range int32(1000) {
			if c.allow(about(p)) {
				lines++
			}
		}
		if lines == 0 || lines > 20 {
			t.Errorf("%d lines about a thousand places at once", lines)
		}
	})
}
