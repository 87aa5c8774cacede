package wire

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Parsing alone, of requests and answers with ten partitions each.

func BenchmarkParse(b *testing.B) {
	records := make([]byte, 1<<10)
	produce, fetch := kmsg.NewPtrProduceRequest(), kmsg.NewPtrFetchRequest()
	produced, fetched := kmsg.NewPtrProduceResponse(), kmsg.NewPtrFetchResponse()
	pt, ft := kmsg.NewProduceRequestTopic(), kmsg.NewFetchRequestTopic()
	prt, frt := kmsg.NewProduceResponseTopic(), kmsg.NewFetchResponseTopic()
	for range 10 {
		p := kmsg.NewProduceRequestTopicPartition()
		p.Records = records
		pt.Partitions = append(pt.Partitions, p)
		ft.Partitions = append(ft.Partitions, kmsg.NewFetchRequestTopicPartition())
		prt.Partitions = append(prt.Partitions, kmsg.NewProduceResponseTopicPartition())
		f := kmsg.NewFetchResponseTopicPartition()
		f.RecordBatches = records
		frt.Partitions = append(frt.Partitions, f)
	}
	produce.Topics, fetch.Topics = append(produce.Topics, pt), append(fetch.Topics, ft)
	produced.Topics, fetched.Topics = append(produced.Topics, prt), append(fetched.Topics, frt)
	produce.SetVersion(11)
	fetch.SetVersion(12)
	produced.SetVersion(11)
	fetched.SetVersion(12)
	request := func(req kmsg.Request, parse func([]byte, int) error) func(*testing.B) {
		frame := encodeRequest(req)
		return func(b *testing.B) {
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				h, err := ParseRequestHeader(frame, true)
				if err == nil {
					err = parse(frame, h.Body)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	response := func(resp kmsg.Response, parse func([]byte, int) error) func(*testing.B) {
		frame := encodeResponse(resp)
		return func(b *testing.B) {
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				body, err := ResponseBody(frame, true)
				if err == nil {
					err = parse(frame, body)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	var p Produce
	var f Fetch
	var pr ProduceResult
	var fr FetchResult
	b.Run("Produce", request(produce, func(b []byte, body int) error { return ParseProduce(&p, b, body, 11) }))
	b.Run("Fetch", request(fetch, func(b []byte, body int) error { return ParseFetch(&f, b, body, 12) }))
	b.Run("ProduceResult", response(produced, func(b []byte, body int) error { return ParseProduceResult(&pr, b, body, 11) }))
	b.Run("FetchResult", response(fetched, func(b []byte, body int) error { return ParseFetchResult(&fr, b, body, 12) }))
}
