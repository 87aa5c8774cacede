package cost

// Run is what so much payload has used, once: a benchmark's.
type Run struct {
	Payload   float64 // bytes that were acknowledged
	Delivered float64 // bytes, to all consumers
	Kafka     float64 // bytes that one replica of a partition's log takes
	Objects   float64 // bytes that were put
	Read      float64 // bytes that were got from objects
	Puts      float64
	Gets      float64
	Lists     float64
}

// Run is the bill of a run whose records are kept for Retention, by a cluster of
// so many Zones and such a Replication; but for machines, whose number no run
// shows. Consumers are as many as it had. It is what the run used, however
// small: objects that a low rate fills badly are paid for.
func (m *Model) Run(r Run) Bill {
	if r.Payload == 0 {
		return Bill{}
	}
	// What is kept for a month costs the same as what is there all month.
	s := Stream{Bytes: r.Kafka / m.month(), Retention: m.Retention, FanOut: r.Delivered / r.Payload, Replication: m.Replication}
	b := m.Kafka(s, r.Objects == 0 && m.FollowerFetch > 0)
	b.add(Objects, r.Objects*(m.Retention+m.ObjectsOutlive)/m.month()/gib, m.Prices.ObjectGBMonth)
	b.add(Puts, r.Puts, m.Prices.Put/1e6)
	b.add(Gets, r.Gets, m.Prices.Get/1e6)
	b.add(Lists, r.Lists, m.Prices.List/1e6)
	b.add(Transfer, r.Objects/gib, m.Prices.UploadGB)
	b.add(Transfer, r.Read/gib, m.Prices.RetrievalGB)
	return b
}
