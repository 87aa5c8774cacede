package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// What kmsg encodes is the reference: the views must find in it what kmsg put
// there, and what they splice must be what kmsg would have encoded.

var id = rapid.Custom(func(t *rapid.T) (id [16]byte) {
	copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	return id
})

func drawTags(t *rapid.T, flexible bool, tags *kmsg.Tags) {
	if !flexible {
		return
	}
	for range rapid.IntRange(0, 2).Draw(t, "tags") {
		// Above every number that a schema gives.
		tags.Set(rapid.Uint32Range(50, 1<<20).Draw(t, "tag"), rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "value"))
	}
}

var (
	records = rapid.SliceOfN(rapid.Byte(), 0, 300)
	name    = rapid.StringMatching(`[a-z0-9._-]{1,200}`)
)

func optional(t *rapid.T, what string) *string {
	if !rapid.Bool().Draw(t, "has "+what) {
		return nil
	}
	s := name.Draw(t, what)
	return &s
}

func drawProduce(t *rapid.T, version int16) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.SetVersion(version)
	flexible := version >= ProduceFlexible
	req.TransactionID = optional(t, "transactional id")
	req.Acks, req.TimeoutMillis = rapid.Int16().Draw(t, "acks"), rapid.Int32().Draw(t, "timeout")
	drawTags(t, flexible, &req.UnknownTags)
	for range rapid.IntRange(0, 3).Draw(t, "topics") {
		topic := kmsg.NewProduceRequestTopic()
		topic.Topic, topic.TopicID = name.Draw(t, "topic"), id.Draw(t, "topic id")
		drawTags(t, flexible, &topic.UnknownTags)
		for range rapid.IntRange(0, 3).Draw(t, "partitions") {
			p := kmsg.NewProduceRequestTopicPartition()
			p.Partition = rapid.Int32().Draw(t, "partition")
			if rapid.Bool().Draw(t, "has records") {
				p.Records = records.Draw(t, "records")
			}
			drawTags(t, flexible, &p.UnknownTags)
			topic.Partitions = append(topic.Partitions, p)
		}
		req.Topics = append(req.Topics, topic)
	}
	return req
}

func encodeRequest(req kmsg.Request) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("client")).AppendRequest(nil, req, 77)
}

func header(t *rapid.T, frame []byte, req kmsg.Request) int {
	key, version, correlation := PeekRequest(frame)
	h, err := ParseRequestHeader(frame, req.IsFlexible())
	if err != nil {
		t.Fatal(err)
	}
	if key != req.Key() || version != req.GetVersion() || correlation != 77 || h.Key != key || h.Version != version || h.CorrelationID != 77 || string(h.ClientID) != "client" {
		t.Fatalf("header %+v", h)
	}
	return h.Body
}

func join(out [][]byte, size int) []byte {
	b := slices.Concat(out...)
	if len(b) != size {
		panic(fmt.Sprintf("%d bytes, Splice said %d", len(b), size))
	}
	return b
}

func TestProduceIsWhatKmsgEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.Int16Range(0, 13).Draw(t, "version")
		req := drawProduce(t, version)
		frame := encodeRequest(req)
		var view Produce
		if err := ParseProduce(&view, frame, header(t, frame, req), version); err != nil {
			t.Fatal(err)
		}
		if view.Acks != req.Acks || view.TimeoutMillis != req.TimeoutMillis || view.Transactional != (version >= 3 && req.TransactionID != nil) {
			t.Fatalf("view %+v", view)
		}
		var edits []Edit
		at := 0
		for i := range req.Topics {
			topic := &req.Topics[i]
			for j := range topic.Partitions {
				p, v := &topic.Partitions[j], view.Partitions[at]
				at++
				if version < ProduceTopicIDs && string(v.Topic) != topic.Topic || version >= ProduceTopicIDs && v.TopicID != topic.TopicID ||
					v.Partition != p.Partition || !bytes.Equal(frame[v.From:v.To], p.Records) {
					t.Fatalf("partition %+v, want %+v", v, p)
				}
				if rapid.Bool().Draw(t, "edited") {
					p.Records = records.Draw(t, "placeholder")
					half := len(p.Records) / 2
					edits = append(edits, RecordsEdit(v.LenAt, v.To, version >= ProduceFlexible, p.Records[:half], p.Records[half:]))
				}
			}
		}
		if at != len(view.Partitions) {
			t.Fatalf("%d partitions, want %d", len(view.Partitions), at)
		}
		before := bytes.Clone(frame)
		got, want := join(Splice(frame, edits)), encodeRequest(req)
		if !bytes.Equal(got, want) {
			t.Fatalf("spliced\n%x, want\n%x", got, want)
		}
		if !bytes.Equal(frame, before) {
			t.Fatal("splicing has changed the frame")
		}
	})
}

func TestFetchIsWhatKmsgEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.Int16Range(4, 18).Draw(t, "version")
		flexible := version >= FetchFlexible
		req := kmsg.NewPtrFetchRequest()
		req.SetVersion(version)
		req.ReplicaID = rapid.Int32().Draw(t, "replica")
		req.ReplicaState.ID, req.ReplicaState.Epoch = req.ReplicaID, 9
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 1, 2, 3
		req.SessionID, req.SessionEpoch = 4, rapid.Int32().Draw(t, "epoch")
		if version >= 11 {
			req.Rack = rapid.StringMatching(`[a-z]{0,200}`).Draw(t, "rack")
		}
		req.ClusterID = optional(t, "cluster")
		drawTags(t, flexible, &req.UnknownTags)
		for range rapid.IntRange(0, 3).Draw(t, "topics") {
			topic := kmsg.NewFetchRequestTopic()
			topic.Topic, topic.TopicID = name.Draw(t, "topic"), id.Draw(t, "topic id")
			drawTags(t, flexible, &topic.UnknownTags)
			for range rapid.IntRange(0, 3).Draw(t, "partitions") {
				p := kmsg.NewFetchRequestTopicPartition()
				p.Partition, p.FetchOffset, p.PartitionMaxBytes = rapid.Int32().Draw(t, "partition"), 5, 6
				p.ReplicaDirectoryID = id.Draw(t, "directory")
				drawTags(t, flexible, &p.UnknownTags)
				topic.Partitions = append(topic.Partitions, p)
			}
			req.Topics = append(req.Topics, topic)
		}
		for range rapid.IntRange(0, 2).Draw(t, "forgotten") {
			topic := kmsg.NewFetchRequestForgottenTopic()
			topic.Topic, topic.TopicID = name.Draw(t, "topic"), id.Draw(t, "topic id")
			topic.Partitions = rapid.SliceOfN(rapid.Int32(), 0, 4).Draw(t, "partitions")
			drawTags(t, flexible, &topic.UnknownTags)
			req.ForgottenTopics = append(req.ForgottenTopics, topic)
		}
		frame := encodeRequest(req)
		var view Fetch
		if err := ParseFetch(&view, frame, header(t, frame, req), version); err != nil {
			t.Fatal(err)
		}
		session := req.SessionEpoch
		if version < 7 {
			session = -1
		}
		if view.ReplicaID != req.ReplicaID || view.Session != session {
			t.Fatalf("view %+v of %+v", view, req)
		}
		put := func(at int, v byte) { frame[at+3] = v }
		put(view.MinAt, 12)
		put(view.MaxAt, 13)
		req.MinBytes, req.MaxBytes = 12, 13
		at := 0
		for i := range req.Topics {
			topic := &req.Topics[i]
			for j := range topic.Partitions {
				p, v := &topic.Partitions[j], view.Partitions[at]
				at++
				if version < FetchTopicIDs && string(v.Topic) != topic.Topic || version >= FetchTopicIDs && v.TopicID != topic.TopicID || v.Partition != p.Partition {
					t.Fatalf("partition %+v, want %+v", v, p)
				}
				put(v.MaxAt, 16)
				p.PartitionMaxBytes = 16
			}
		}
		if at != len(view.Partitions) {
			t.Fatalf("%d partitions, want %d", len(view.Partitions), at)
		}
		var edits []Edit
		if version >= 11 {
			none := []byte{0, 0}
			if flexible {
				none = []byte{1}
			}
			edits = append(edits, Edit{From: view.RackAt, To: view.RackEnd, With: [][]byte{none}})
			req.Rack = ""
		} else if view.RackAt != view.RackEnd {
			t.Fatalf("a rack at %d to %d", view.RackAt, view.RackEnd)
		}
		if got, want := join(Splice(frame, edits)), encodeRequest(req); !bytes.Equal(got, want) {
			t.Fatalf("patched\n%x, want\n%x", got, want)
		}
	})
}

func encodeResponse(resp kmsg.Response) []byte {
	b := []byte{0, 0, 0, 0, 0, 0, 0, 77}
	if resp.IsFlexible() {
		b = append(b, 0)
	}
	b = resp.AppendTo(b)
	SetSize(b)
	return b
}

func responseBody(t *rapid.T, frame []byte, resp kmsg.Response) int {
	body, err := ResponseBody(frame, resp.IsFlexible())
	if err != nil {
		t.Fatal(err)
	}
	if CorrelationID(frame) != 77 {
		t.Fatalf("correlation id %d", CorrelationID(frame))
	}
	return body
}

func TestProduceResultIsWhatKmsgEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.Int16Range(0, 13).Draw(t, "version")
		flexible := version >= ProduceFlexible
		resp := kmsg.NewPtrProduceResponse()
		resp.SetVersion(version)
		drawTags(t, flexible, &resp.UnknownTags)
		for range rapid.IntRange(0, 3).Draw(t, "topics") {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = name.Draw(t, "topic"), id.Draw(t, "topic id")
			drawTags(t, flexible, &topic.UnknownTags)
			for range rapid.IntRange(0, 3).Draw(t, "partitions") {
				p := kmsg.NewProduceResponseTopicPartition()
				p.Partition, p.ErrorCode = rapid.Int32().Draw(t, "partition"), rapid.Int16().Draw(t, "error")
				p.ErrorMessage = optional(t, "message")
				for range rapid.IntRange(0, 2).Draw(t, "record errors") {
					e := kmsg.NewProduceResponseTopicPartitionErrorRecord()
					e.ErrorMessage = optional(t, "message")
					drawTags(t, flexible, &e.UnknownTags)
					p.ErrorRecords = append(p.ErrorRecords, e)
				}
				if version >= 10 {
					p.CurrentLeader.LeaderID = rapid.Int32Range(-1, 3).Draw(t, "leader")
				}
				drawTags(t, flexible, &p.UnknownTags)
				topic.Partitions = append(topic.Partitions, p)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		if version >= 10 && rapid.Bool().Draw(t, "endpoints") {
			resp.Brokers = append(resp.Brokers, kmsg.NewProduceResponseBroker())
		}
		frame := encodeResponse(resp)
		var view ProduceResult
		if err := ParseProduceResult(&view, frame, responseBody(t, frame, resp), version); err != nil {
			t.Fatal(err)
		}
		if view.Endpoints != (len(resp.Brokers) > 0) {
			t.Fatalf("endpoints %v, want %d", view.Endpoints, len(resp.Brokers))
		}
		at := 0
		for i := range resp.Topics {
			topic := &resp.Topics[i]
			for j := range topic.Partitions {
				p, v := &topic.Partitions[j], view.Partitions[at]
				at++
				if version < ProduceTopicIDs && string(v.Topic) != topic.Topic || version >= ProduceTopicIDs && v.TopicID != topic.TopicID ||
					v.Partition != p.Partition || v.Error != p.ErrorCode {
					t.Fatalf("partition %+v, want %+v", v, p)
				}
				frame[v.ErrorAt], frame[v.ErrorAt+1] = 0, 56
				p.ErrorCode = 56
				if v.LeaderAt > 0 {
					copy(frame[v.LeaderAt:], []byte{0, 16, 0, 9})
					p.CurrentLeader.LeaderID = 1<<20 + 9
				}
			}
		}
		if want := encodeResponse(resp); !bytes.Equal(frame, want) {
			t.Fatalf("patched\n%x, want\n%x", frame, want)
		}
	})
}

func TestFetchResultIsWhatKmsgEncodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.Int16Range(4, 18).Draw(t, "version")
		flexible := version >= FetchFlexible
		resp := kmsg.NewPtrFetchResponse()
		resp.SetVersion(version)
		drawTags(t, flexible, &resp.UnknownTags)
		for range rapid.IntRange(0, 3).Draw(t, "topics") {
			topic := kmsg.NewFetchResponseTopic()
			topic.Topic, topic.TopicID = name.Draw(t, "topic"), id.Draw(t, "topic id")
			drawTags(t, flexible, &topic.UnknownTags)
			for range rapid.IntRange(0, 3).Draw(t, "partitions") {
				p := kmsg.NewFetchResponseTopicPartition()
				p.Partition, p.ErrorCode = rapid.Int32().Draw(t, "partition"), rapid.Int16().Draw(t, "error")
				if rapid.Bool().Draw(t, "has records") {
					p.RecordBatches = records.Draw(t, "records")
				}
				for range rapid.IntRange(0, 2).Draw(t, "aborted") {
					a := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
					drawTags(t, flexible, &a.UnknownTags)
					p.AbortedTransactions = append(p.AbortedTransactions, a)
				}
				if version >= 12 {
					p.CurrentLeader.LeaderID = rapid.Int32Range(-1, 3).Draw(t, "leader")
					p.DivergingEpoch.Epoch = rapid.Int32Range(-1, 3).Draw(t, "diverging")
				}
				drawTags(t, flexible, &p.UnknownTags)
				topic.Partitions = append(topic.Partitions, p)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		if version >= 16 && rapid.Bool().Draw(t, "endpoints") {
			resp.Brokers = append(resp.Brokers, kmsg.NewFetchResponseBroker())
		}
		frame := encodeResponse(resp)
		var view FetchResult
		if err := ParseFetchResult(&view, frame, responseBody(t, frame, resp), version); err != nil {
			t.Fatal(err)
		}
		if view.Endpoints != (len(resp.Brokers) > 0) {
			t.Fatalf("endpoints %v, want %d", view.Endpoints, len(resp.Brokers))
		}
		var edits []Edit
		at := 0
		for i := range resp.Topics {
			topic := &resp.Topics[i]
			for j := range topic.Partitions {
				p, v := &topic.Partitions[j], view.Partitions[at]
				at++
				if version < FetchTopicIDs && string(v.Topic) != topic.Topic || version >= FetchTopicIDs && v.TopicID != topic.TopicID ||
					v.Partition != p.Partition || !bytes.Equal(frame[v.From:v.To], p.RecordBatches) {
					t.Fatalf("partition %+v, want %+v", v, p)
				}
				frame[v.ErrorAt], frame[v.ErrorAt+1] = 0, 56
				p.ErrorCode = 56
				if v.LeaderAt > 0 {
					copy(frame[v.LeaderAt:], []byte{0, 16, 0, 9})
					p.CurrentLeader.LeaderID = 1<<20 + 9
				}
				if rapid.Bool().Draw(t, "edited") {
					p.RecordBatches = records.Draw(t, "hydrated")
					edits = append(edits, RecordsEdit(v.LenAt, v.To, flexible, p.RecordBatches))
				}
			}
		}
		if got, want := join(Splice(frame, edits)), encodeResponse(resp); !bytes.Equal(got, want) {
			t.Fatalf("spliced\n%x, want\n%x", got, want)
		}
	})
}

func TestCutShortIsMalformed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.Int16Range(0, 13).Draw(t, "version")
		frame := encodeRequest(drawProduce(t, version))
		h, err := ParseRequestHeader(frame, version >= ProduceFlexible)
		if err != nil {
			t.Fatal(err)
		}
		cut := frame[:rapid.IntRange(h.Body, len(frame)-1).Draw(t, "cut")]
		if err := ParseProduce(&Produce{}, cut, h.Body, version); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a frame cut after %d of %d bytes: %v", len(cut), len(frame), err)
		}
		if err := ParseProduce(&Produce{}, append(frame, 0), h.Body, version); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a frame with a byte too many: %v", err)
		}
	})
}

// FuzzParsers feeds strangers' bytes to every view. Nothing may panic, and
// nothing that a view points at may lie outside the frame.
func FuzzParsers(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for version := range int16(19) {
		b := make([]byte, 8+random.IntN(200))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b, version)
		req := kmsg.NewPtrFetchRequest()
		req.SetVersion(version)
		req.Topics = append(req.Topics, kmsg.NewFetchRequestTopic())
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, kmsg.NewFetchRequestTopicPartition())
		f.Add(encodeRequest(req), version)
		resp := kmsg.NewPtrFetchResponse()
		resp.SetVersion(version)
		resp.Topics = append(resp.Topics, kmsg.NewFetchResponseTopic())
		resp.Topics[0].Partitions = append(resp.Topics[0].Partitions, kmsg.NewFetchResponseTopicPartition())
		f.Add(encodeResponse(resp), version)
		produce := kmsg.NewPtrProduceRequest()
		produce.SetVersion(min(version, 13))
		produce.Topics = append(produce.Topics, kmsg.NewProduceRequestTopic())
		produce.Topics[0].Partitions = append(produce.Topics[0].Partitions, kmsg.NewProduceRequestTopicPartition())
		f.Add(encodeRequest(produce), min(version, 13))
	}
	f.Fuzz(func(t *testing.T, frame []byte, version int16) {
		if version < 0 || version > 18 || len(frame) < MinRequest {
			return
		}
		within := func(what string, from, to int) {
			if from < 0 || to > len(frame) || from > to {
				t.Fatalf("%s: %d to %d of %d bytes", what, from, to, len(frame))
			}
		}
		before := bytes.Clone(frame)
		for _, flexible := range []bool{false, true} {
			h, err := ParseRequestHeader(frame, flexible)
			body, err2 := ResponseBody(frame, flexible)
			if err == nil {
				var p Produce
				if ParseProduce(&p, frame, h.Body, version) == nil {
					var edits []Edit
					for _, v := range p.Partitions {
						within("records", v.From, v.To)
						within("length", v.LenAt, v.From)
						edits = append(edits, RecordsEdit(v.LenAt, v.To, version >= ProduceFlexible, []byte("x")))
					}
					Splice(frame, edits)
				}
				var q Fetch
				if ParseFetch(&q, frame, h.Body, version) == nil {
					within("min", q.MinAt, q.MinAt+4)
					within("max", q.MaxAt, q.MaxAt+4)
					within("rack", q.RackAt, q.RackEnd)
					for _, v := range q.Partitions {
						within("partition max", v.MaxAt, v.MaxAt+4)
					}
				}
			}
			if err2 == nil {
				var p ProduceResult
				if ParseProduceResult(&p, frame, body, version) == nil {
					for _, v := range p.Partitions {
						within("error", v.ErrorAt, v.ErrorAt+2)
						within("leader", v.LeaderAt, v.LeaderAt+4)
					}
				}
				var q FetchResult
				if ParseFetchResult(&q, frame, body, version) == nil {
					var edits []Edit
					for _, v := range q.Partitions {
						within("records", v.From, v.To)
						within("length", v.LenAt, v.From)
						within("leader", v.LeaderAt, v.LeaderAt+4)
						edits = append(edits, RecordsEdit(v.LenAt, v.To, version >= FetchFlexible, []byte("x")))
					}
					if version >= FetchFlexible {
						within("tags", q.TagsFrom, q.TagsTo)
						edits = append(edits, Edit{From: q.TagsFrom, To: q.TagsTo})
					}
					Splice(frame, edits)
				}
			}
		}
		for rest := frame; ; {
			b, after, ok := NextBatch(rest)
			if !ok {
				break
			}
			if b.Size()+len(after) != len(rest) || b.IsV2() && len(b.Body()) != b.Size()-BatchHeaderSize {
				t.Fatal("a batch of another size than its own")
			}
			rest = after
		}
		if !bytes.Equal(frame, before) {
			t.Fatal("reading has changed the frame")
		}
	})
}

func TestVarints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 12).Draw(t, "bytes")
		v, n := Varint(b)
		l, m := Varlong(b)
		if n < 0 || n > min(5, len(b)) || m < 0 || m > min(10, len(b)) {
			t.Fatalf("%d and %d bytes of %d", n, m, len(b))
		}
		if n > 0 && (m != n || n < 5 && int64(v) != l) {
			t.Fatalf("%d in %d bytes, %d in %d", v, n, l, m)
		}
	})
	for _, tc := range []struct {
		b    []byte
		want int32
		n    int
	}{
		{[]byte{0}, 0, 1}, {[]byte{1}, -1, 1}, {[]byte{2}, 1, 1}, {[]byte{0xfe, 0xff, 0xff, 0xff, 0x0f}, 1<<31 - 1, 5},
		{[]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, -1 << 31, 5}, {[]byte{0x80, 0}, 0, 2}, {[]byte{0x80}, 0, 0}, {nil, 0, 0},
		{[]byte{0x80, 0x80, 0x80, 0x80, 0x80, 0}, 0, 0},
	} {
		if v, n := Varint(tc.b); v != tc.want || n != tc.n {
			t.Errorf("% x: %d in %d bytes, want %d in %d", tc.b, v, n, tc.want, tc.n)
		}
	}
}
