package integration

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// speaker says in words what a client sees of an answer. What differs from one
// target to the other by its nature (names of topics and groups, ids, addresses,
// the time of day) is called by what it is; all else is said as it is, so that
// two targets say the same of the same.
type speaker struct {
	mu    sync.Mutex
	names []string         // pairs for a strings.Replacer
	ids   map[string]int   // of producers and members, in the order of their coming
	topic map[[16]byte]int // ids of topics, likewise
}

func newSpeaker() *speaker { return &speaker{ids: map[string]int{}, topic: map[[16]byte]int{}} }

// call gives a target's own name the common one.
func (s *speaker) call(own, common string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = append(s.names, own, common)
}

func (s *speaker) text(v string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.NewReplacer(s.names...).Replace(v)
}

// nth says which of a kind of ids one is.
func (s *speaker) nth(kind, id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := kind + id
	if _, ok := s.ids[key]; !ok {
		s.ids[key] = len(s.ids)
	}
	return fmt.Sprintf("%s %d", kind, s.ids[key])
}

// today is later than all that tests write with times of their own, and before
// what they write for the far future.
func moment(ms int64) string {
	if ms > baseTime+30*24*3600*1000 && ms < farFuture {
		return "now"
	}
	return strconv.FormatInt(ms, 10)
}

const farFuture = 4_102_444_800_000 // the year 2100

// unsaid are fields that say nothing of the cluster, or what no client can rely
// on to be the same in two places.
var unsaid = map[string]bool{
	"Version": true, "UnknownTags": true, "ThrottleMillis": true, "SessionID": true, "Host": true, "Port": true,
	"CoordinatorEpoch": true, "ClientHost": true, "Brokers": true, "ControllerID": true, // any broker forwards to it
}

// words say an answer, or a part of one.
func (s *speaker) words(v any) string {
	var b strings.Builder
	s.say(&b, "", reflect.ValueOf(v), "")
	return b.String()
}

func (s *speaker) say(b *strings.Builder, field string, v reflect.Value, indent string) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			b.WriteString("null")
			return
		}
		s.say(b, field, v.Elem(), indent)
	case reflect.Struct:
		first := true
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if unsaid[f.Name] || !f.IsExported() {
				continue
			}
			if !first {
				b.WriteString(", ")
			}
			first = false
			b.WriteString(f.Name + " ")
			s.say(b, f.Name, v.Field(i), indent)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			s.bytes(b, field, v)
			return
		}
		s.list(b, field, v, indent)
	case reflect.Array:
		if id, ok := v.Interface().([16]byte); ok {
			b.WriteString(s.topicID(id))
			return
		}
		fmt.Fprint(b, v.Interface())
	case reflect.String:
		text := v.String()
		if (field == "MemberID" || field == "LeaderID") && text != "" {
			text = s.nth("member", text)
		}
		if field == "Name" && strings.HasPrefix(text, "sluice.") {
			text = "" // see list
		}
		fmt.Fprintf(b, "%q", s.text(text))
	case reflect.Int64:
		n := v.Int()
		switch {
		case field == "ProducerID" && n >= 0:
			b.WriteString(s.nth("producer", strconv.FormatInt(n, 10)))
		case strings.Contains(field, "Time"):
			b.WriteString(moment(n))
		default:
			fmt.Fprint(b, n)
		}
	case reflect.Int16:
		if strings.HasSuffix(field, "ErrorCode") {
			b.WriteString(name(int16(v.Int())))
			return
		}
		fmt.Fprint(b, v.Int())
	case reflect.Int32:
		n := int32(v.Int())
		switch field {
		case "Leader", "LeaderID", "NodeID", "ControllerID", "Replicas", "ISR", "OfflineReplicas", "BrokerID", "PreferredReadReplica", "AddingReplicas", "RemovingReplicas":
			fmt.Fprint(b, realLeader(n))
		case "LeaderEpoch", "PartitionLeaderEpoch": // how many an election takes is the controller's
			fmt.Fprint(b, min(n, 0))
		default:
			fmt.Fprint(b, n)
		}
	default:
		fmt.Fprint(b, v.Interface())
	}
}

// list says elements by what they say: where there are several, brokers promise
// no order, except of replicas.
func (s *speaker) list(b *strings.Builder, field string, v reflect.Value, indent string) {
	var all []string
	for i := range v.Len() {
		e := v.Index(i)
		if n := e; n.Kind() == reflect.Struct {
			if n = n.FieldByName("Name"); n.IsValid() && n.Kind() == reflect.String && strings.HasPrefix(n.String(), "sluice.") {
				continue // what a topic shows of its class
			}
		}
		var one strings.Builder
		s.say(&one, field, e, indent+"  ")
		all = append(all, one.String())
	}
	if field != "Replicas" {
		slices.Sort(all)
	}
	if v.Type().Elem().Kind() != reflect.Struct {
		b.WriteString("[" + strings.Join(all, " ") + "]")
		return
	}
	for _, one := range all {
		b.WriteString("\n" + indent + "  " + one)
	}
}

func (s *speaker) topicID(id [16]byte) string {
	if id == [16]byte{} {
		return "none"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.topic[id]; !ok {
		s.topic[id] = len(s.topic)
	}
	return fmt.Sprintf("id %d", s.topic[id])
}

func (s *speaker) bytes(b *strings.Builder, field string, v reflect.Value) {
	raw := v.Bytes()
	switch {
	case raw == nil:
		b.WriteString("null")
	case field == "RecordBatches":
		for _, line := range s.batches(raw) {
			b.WriteString("\n    " + line)
		}
	default:
		b.WriteString(short(s.text(string(raw))))
	}
}

// whole cuts what a Fetch gives into batches, and leaves out a part of one, which
// brokers send and clients drop.
func whole(raw []byte) (batches [][]byte) {
	for len(raw) > 12 {
		n := 12 + int(binary.BigEndian.Uint32(raw[8:]))
		if n > len(raw) {
			break
		}
		batches = append(batches, raw[:n])
		raw = raw[n:]
	}
	return batches
}

var unpacker = kgo.DefaultDecompressor()

// recordsOf are a batch's, decoded one by one.
func recordsOf(batch *kmsg.RecordBatch) ([]kmsg.Record, error) {
	raw := batch.Records
	if codec := batch.Attributes & 7; codec != 0 {
		var err error
		if raw, err = unpacker.Decompress(raw, kgo.CompressionCodecType(codec)); err != nil {
			return nil, err
		}
	}
	records := make([]kmsg.Record, batch.NumRecords)
	for i := range records {
		size, n := binary.Varint(raw)
		if n <= 0 || int(size) > len(raw)-n {
			return nil, fmt.Errorf("record %d of %d is cut", i, len(records))
		}
		if err := records[i].ReadFrom(raw[:n+int(size)]); err != nil {
			return nil, err
		}
		raw = raw[n+int(size):]
	}
	if len(raw) > 0 {
		return nil, fmt.Errorf("%d bytes follow the records", len(raw))
	}
	return records, nil
}

const (
	isControl    = 1 << 5
	isAppendTime = 1 << 3
)

// batches say what a consumer makes of batches. The codec is not said: a topic
// that has its own is recompressed by brokers, and what is in objects is not.
func (s *speaker) batches(raw []byte) (lines []string) {
	for _, one := range whole(raw) {
		var b kmsg.RecordBatch
		if err := b.ReadFrom(one); err != nil {
			return append(lines, err.Error())
		}
		producer := "no producer"
		if b.ProducerID >= 0 {
			producer = s.nth("producer", strconv.FormatInt(b.ProducerID, 10))
		}
		lines = append(lines, fmt.Sprintf("batch at %d: %d records to +%d, attributes %x, times %s to %s, %s of epoch %d at %d", b.FirstOffset, b.NumRecords, b.LastOffsetDelta,
			b.Attributes&^7, moment(b.FirstTimestamp), moment(b.MaxTimestamp), producer, b.ProducerEpoch, b.FirstSequence))
		if b.Attributes&isControl != 0 {
			lines[len(lines)-1] = fmt.Sprintf("marker at %d of %s, epoch %d", b.FirstOffset, producer, b.ProducerEpoch)
			continue // the coordinator's
		}
		records, err := recordsOf(&b)
		if err != nil {
			lines = append(lines, "  "+err.Error())
		}
		for _, r := range records {
			at := b.FirstTimestamp + r.TimestampDelta64
			if b.Attributes&isAppendTime != 0 {
				at = b.MaxTimestamp
			}
			line := fmt.Sprintf("  record %d of %s: key %s, value %s", b.FirstOffset+int64(r.OffsetDelta), moment(at), brief(r.Key), brief(r.Value))
			for _, h := range r.Headers {
				line += fmt.Sprintf(", header %q %s", h.Key, brief(h.Value))
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// brief tells bytes apart, and null from nothing.
func brief(b []byte) string {
	switch {
	case b == nil:
		return "null"
	case len(b) <= 16:
		return strconv.Quote(string(b))
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%d bytes %x", len(b), sum[:6])
}

// apart shows the first lines in which two texts differ.
func apart(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		at := func(lines []string) string {
			if i < len(lines) {
				return cmp.Or(lines[i], "(an empty line)")
			}
			return "(nothing more)"
		}
		if a, b := at(g), at(w); a != b {
			return fmt.Sprintf("line %d\n    here:     %s\n    directly: %s", i+1, a, b)
		}
	}
	return "nothing"
}
