package integration

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// verbose prints what every step of a script says, with SLUICE_SAY set.
func verbose() bool { return os.Getenv("SLUICE_SAY") != "" }

// failure is what a client is told that gets no answer.
func failure(err error) string {
	text := err.Error()
	for _, known := range []string{"topic id", "unable to", "unknown broker", "does not support", "too new", "EOF"} {
		if strings.Contains(text, known) {
			return noAnswer + ": " + known
		}
	}
	return noAnswer
}

const noAnswer = "no answer"

// ids are replicas as a step's client calls them.
func (w *world) ids(s step, replicas []int32) []int32 {
	out := slices.Clone(replicas)
	for i := range out {
		out[i] = int32(w.node(s, out[i]))
	}
	return out
}

func (w *world) create(s step) string {
	st := w.state(s.Topic)
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.ValidateOnly = 30_000, s.How == "validate"
	ct := kmsg.NewCreateTopicsRequestTopic()
	ct.Topic, ct.NumPartitions, ct.ReplicationFactor = w.topic(s.Topic), -1, -1
	if s.Count > 0 {
		ct.NumPartitions, ct.ReplicationFactor = s.Count, int16(s.Limit)
	}
	for i, replicas := range s.Replicas {
		a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		a.Partition, a.Replicas = int32(i), w.ids(s, replicas)
		ct.ReplicaAssignment = append(ct.ReplicaAssignment, a)
	}
	for _, key := range sortedConfigs(s.Configs) {
		value := s.Configs[key]
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = key, &value
		ct.Configs = append(ct.Configs, c)
	}
	req.Topics = append(req.Topics, ct)
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	got := resp.(*kmsg.CreateTopicsResponse)
	if t := got.Topics[0]; t.ErrorCode == 0 && !req.ValidateOnly {
		*st = topicState{exists: true, replicas: s.Replicas, ends: map[int32]int64{}}
		w.settle(s.Topic)
	}
	return w.words.words(got)
}

func (w *world) remove(s step) string {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis = 30_000
	topic := w.topic(s.Topic)
	dt := kmsg.NewDeleteTopicsRequestTopic()
	dt.Topic, req.TopicNames = &topic, []string{topic}
	if s.How == "id" && w.state(s.Topic).exists {
		dt.Topic, dt.TopicID = nil, w.state(s.Topic).id
	}
	req.Topics = append(req.Topics, dt)
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	got := resp.(*kmsg.DeleteTopicsResponse)
	if st := w.state(s.Topic); got.Topics[0].ErrorCode == 0 {
		id := st.id
		*st = topicState{ends: map[int32]int64{}, id: id}
		w.settle(s.Topic)
		for _, p := range w.producers {
			p.forget(topic)
		}
	}
	return w.words.words(got)
}

// forget drops what a producer has sent to a topic that is no more.
func (p *producerState) forget(topic string) {
	for _, m := range []any{p.next, p.last, p.open} {
		switch m := m.(type) {
		case map[string]int32:
			maps.DeleteFunc(m, func(k string, _ int32) bool { return strings.HasPrefix(k, topic+" ") })
		case map[string][]byte:
			maps.DeleteFunc(m, func(k string, _ []byte) bool { return strings.HasPrefix(k, topic+" ") })
		}
	}
}

func (w *world) addPartitions(s step) string {
	st := w.state(s.Topic)
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.TimeoutMillis = 30_000
	ct := kmsg.NewCreatePartitionsRequestTopic()
	ct.Topic, ct.Count = w.topic(s.Topic), s.Count
	for _, replicas := range s.Replicas {
		a := kmsg.NewCreatePartitionsRequestTopicAssignment()
		a.Replicas = w.ids(s, replicas)
		ct.Assignment = append(ct.Assignment, a)
	}
	req.Topics = append(req.Topics, ct)
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	got := resp.(*kmsg.CreatePartitionsResponse)
	if got.Topics[0].ErrorCode == 0 {
		st.replicas = append(slices.Clone(st.replicas), s.Replicas...)
		w.settle(s.Topic)
	}
	return w.words.words(got)
}

func (w *world) produce(s step) string {
	st := w.state(s.Topic)
	var p *producerState
	id, epoch, sequence, txn := int64(-1), int16(-1), int32(-1), ""
	key := fmt.Sprint(w.topic(s.Topic), " ", s.Partition)
	if s.Producer > 0 {
		if p = w.producers[s.Producer]; p == nil {
			return "there is no such producer"
		}
		s.As = p.as
		if s.How == "stale" && p.previous != nil {
			p = p.previous
		}
		id, epoch, sequence, txn = p.id, p.epoch, p.next[key], p.txn
		if s.How == "gap" {
			sequence += 7
		}
	}
	batch := s.Batch.make(id, epoch, sequence, txn != "")
	if s.How == "again" && p != nil {
		if batch = p.last[key]; batch == nil {
			return "nothing to send again"
		}
	}
	if txn != "" && s.As == "tv1" && !p.open[key] {
		if said := w.addToTransaction(s, p); said != "" {
			return said
		}
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = s.Acks, 20_000
	if txn != "" {
		req.TransactionID = &txn
	}
	pt := kmsg.NewProduceRequestTopic()
	pt.Topic, pt.TopicID = w.topic(s.Topic), st.id
	pp := kmsg.NewProduceRequestTopicPartition()
	pp.Partition, pp.Records = s.Partition, batch
	pt.Partitions = append(pt.Partitions, pp)
	req.Topics = append(req.Topics, pt)
	if s.Acks == 0 {
		if !w.exists(s) || p != nil {
			return "not tried"
		}
		if _, err := w.ask(s, w.node(s, w.leader(s)), req); err != nil {
			return failure(err)
		}
		st.ends[s.Partition] += int64(s.Batch.Records)
		w.settleEnd(s.Topic, s.Partition)
		return fmt.Sprintf("the end is %d", st.ends[s.Partition])
	}
	var got *kmsg.ProduceResponse
	err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.ask(s, w.node(s, w.leader(s)), req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.ProduceResponse)
		return got.Topics[0].Partitions[0].ErrorCode, nil
	})
	if err != nil {
		return failure(err)
	}
	said := got.Topics[0].Partitions[0]
	if said.ErrorCode == 0 {
		if s.How != "again" {
			st.ends[s.Partition] = said.BaseOffset + int64(s.Batch.Records)
		}
		if p != nil && s.How != "again" {
			p.next[key] += int32(s.Batch.Records)
			p.last[key] = batch
			p.open[key] = txn != ""
		}
		w.settleEnd(s.Topic, s.Partition)
	}
	said.CurrentLeader = kmsg.ProduceResponseTopicPartitionCurrentLeader{}
	return w.words.words(said)
}

func (w *world) addToTransaction(s step, p *producerState) string {
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch = p.txn, p.id, p.epoch
	at := kmsg.NewAddPartitionsToTxnRequestTopic()
	at.Topic, at.Partitions = w.topic(s.Topic), []int32{s.Partition}
	req.Topics = append(req.Topics, at)
	var code int16
	if err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.askAny(s, req)
		if err != nil {
			return 0, err
		}
		code = resp.(*kmsg.AddPartitionsToTxnResponse).Topics[0].Partitions[0].ErrorCode
		return code, nil
	}); err != nil {
		return failure(err)
	}
	if code != 0 {
		return "adding the partition: " + name(code)
	}
	return ""
}

func (w *world) initProducer(s step) string {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch, req.TransactionTimeoutMillis = -1, -1, 60_000
	p := &producerState{as: s.As, next: map[string]int32{}, last: map[string][]byte{}, open: map[string]bool{}, previous: w.producers[s.Producer]}
	if s.How == "transactional" {
		p.txn = w.txn(s.Producer)
		req.TransactionalID = &p.txn
	}
	var got *kmsg.InitProducerIDResponse
	if err := w.insist(s, true, func() (int16, error) {
		resp, err := w.askAny(s, req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.InitProducerIDResponse)
		return got.ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	if got.ErrorCode == 0 {
		p.id, p.epoch = got.ProducerID, got.ProducerEpoch
		w.producers[s.Producer] = p
		if p.txn != "" {
			w.settleTransaction(p)
		}
	}
	return w.words.words(got)
}

// settleTransaction waits until a transaction that ends has ended.
func (w *world) settleTransaction(p *producerState) {
	w.await("the end of a transaction", func() (bool, string) {
		req := kmsg.NewPtrDescribeTransactionsRequest()
		req.TransactionalIDs = []string{p.txn}
		resp, err := w.direct.Request(w.ctx, req)
		if err != nil {
			return false, err.Error()
		}
		got := resp.(*kmsg.DescribeTransactionsResponse).TransactionStates[0]
		return got.ErrorCode == 0 && !strings.HasPrefix(got.State, "Prepare"), got.State
	})
	// Markers count.
	for i, st := range w.topics {
		for partition := range st.leaders {
			if st.exists {
				w.readEnd(i, int32(partition))
			}
		}
	}
}

// readEnd takes the end as brokers say it is.
func (w *world) readEnd(i int, partition int32) {
	st := w.state(i)
	w.await("an end", func() (bool, string) {
		resp, err := w.direct.Broker(int(st.leaders[partition])).Request(w.ctx, listing(w.topic(i), partition, -1, false))
		if err != nil {
			return false, err.Error()
		}
		got := resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
		if got.ErrorCode == 0 {
			st.ends[partition] = max(st.ends[partition], got.Offset)
		}
		return got.ErrorCode == 0, name(got.ErrorCode)
	})
}

func (w *world) endTransaction(s step) string {
	p := w.producers[s.Producer]
	if p == nil || p.txn == "" {
		return "there is no such producer"
	}
	s.As = p.as
	req := kmsg.NewPtrEndTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = p.txn, p.id, p.epoch, s.Commit
	var got *kmsg.EndTxnResponse
	if err := w.insist(s, true, func() (int16, error) {
		resp, err := w.askAny(s, req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.EndTxnResponse)
		return got.ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	if got.ErrorCode == 0 {
		clear(p.open)
		if s.As != "tv1" { // KIP-890: every transaction has an epoch
			if got.ProducerID >= 0 {
				p.id, p.epoch = got.ProducerID, got.ProducerEpoch
			}
			clear(p.next)
			clear(p.last)
		}
		w.settleTransaction(p)
	}
	return w.words.words(got)
}

func (w *world) offsetsInTransaction(s step) string {
	p := w.producers[s.Producer]
	if p == nil || p.txn == "" {
		return "there is no such producer"
	}
	s.As = p.as
	w.groups[s.Group] = true
	if p.as == "tv1" {
		req := kmsg.NewPtrAddOffsetsToTxnRequest()
		req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = p.txn, p.id, p.epoch, w.group(s.Group)
		var code int16
		if err := w.insist(s, true, func() (int16, error) {
			resp, err := w.askAny(s, req)
			if err != nil {
				return 0, err
			}
			code = resp.(*kmsg.AddOffsetsToTxnResponse).ErrorCode
			return code, nil
		}); err != nil {
			return failure(err)
		}
		if code != 0 {
			return "adding the group: " + name(code)
		}
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group, req.Generation = p.txn, p.id, p.epoch, w.group(s.Group), -1
	tt := kmsg.NewTxnOffsetCommitRequestTopic()
	tt.Topic = w.topic(s.Topic)
	tp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
	tp.Partition, tp.Offset, tp.LeaderEpoch = s.Partition, s.Offset, -1
	tt.Partitions = append(tt.Partitions, tp)
	req.Topics = append(req.Topics, tt)
	var got *kmsg.TxnOffsetCommitResponse
	if err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.askAny(s, req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.TxnOffsetCommitResponse)
		return got.Topics[0].Partitions[0].ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	return w.words.words(got)
}

// fetch reads from an offset to the end, as many times as it takes.
func (w *world) fetch(s step) string {
	var lines, last []string
	aborted := map[string]bool{}
	offset := s.Offset
	for turn := 0; ; turn++ {
		if turn > 500 {
			return strings.Join(append(lines, "no end after 500 answers"), "\n")
		}
		req := kmsg.NewPtrFetchRequest()
		req.ReplicaID, req.ReplicaState.ID, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = -1, -1, 5, 1, 50<<20, -1
		if s.Committed {
			req.IsolationLevel = 1
		}
		ft := kmsg.NewFetchRequestTopic()
		ft.Topic, ft.TopicID = w.topic(s.Topic), w.state(s.Topic).id
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.Partition, fp.FetchOffset, fp.PartitionMaxBytes, fp.CurrentLeaderEpoch, fp.LastFetchedEpoch, fp.LogStartOffset = s.Partition, offset, 50<<20, -1, -1, -1
		if s.Limit > 0 {
			fp.PartitionMaxBytes = s.Limit
			if s.How == "request" {
				fp.PartitionMaxBytes, req.MaxBytes = 50<<20, s.Limit
			}
		}
		ft.Partitions = append(ft.Partitions, fp)
		req.Topics = append(req.Topics, ft)
		var got *kmsg.FetchResponse
		err := w.insist(s, w.exists(s), func() (int16, error) {
			resp, err := w.ask(s, w.node(s, w.leader(s)), req)
			if err != nil {
				return 0, err
			}
			got = resp.(*kmsg.FetchResponse)
			if len(got.Topics) == 0 {
				return got.ErrorCode, nil
			}
			return got.Topics[0].Partitions[0].ErrorCode, nil
		})
		if err != nil {
			return strings.Join(append(lines, failure(err)), "\n")
		}
		if got.ErrorCode != 0 || len(got.Topics) == 0 {
			return strings.Join(append(lines, name(got.ErrorCode)), "\n")
		}
		p := got.Topics[0].Partitions[0]
		batches := whole(p.RecordBatches)
		if s.Limit > 0 && len(batches) > 1 {
			// A first batch is given whole, however small the limit.
			size := 0
			for _, b := range batches {
				size += len(b)
			}
			if size > int(s.Limit) {
				lines = append(lines, fmt.Sprintf("%d batches of %d bytes, where %d were asked for", len(batches), size, s.Limit))
			}
		}
		for _, a := range p.AbortedTransactions {
			aborted[fmt.Sprintf("%s aborted what it began at %d", w.words.nth("producer", fmt.Sprint(a.ProducerID)), a.FirstOffset)] = true
		}
		p.RecordBatches, p.AbortedTransactions, p.CurrentLeader = nil, nil, kmsg.FetchResponseTopicPartitionCurrentLeader{}
		last = []string{w.words.words(p)}
		if len(batches) == 0 {
			break
		}
		for _, b := range batches {
			lines = append(lines, w.words.batches(b)...)
			offset = int64(binary.BigEndian.Uint64(b)) + int64(binary.BigEndian.Uint32(b[23:])) + 1
		}
	}
	return strings.Join(slices.Concat(lines, slices.Sorted(maps.Keys(aborted)), last), "\n")
}

func (w *world) offset(s step) string {
	var got *kmsg.ListOffsetsResponse
	if err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.ask(s, w.node(s, w.leader(s)), listing(w.topic(s.Topic), s.Partition, s.Offset, s.Committed))
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.ListOffsetsResponse)
		return got.Topics[0].Partitions[0].ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	if p := &got.Topics[0].Partitions[0]; moment(p.Timestamp) == "now" {
		p.Offset = -9 // of which batch of this moment is by the millisecond
	}
	return w.words.words(got)
}

func (w *world) deleteRecords(s step) string {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 20_000
	dt := kmsg.NewDeleteRecordsRequestTopic()
	dt.Topic = w.topic(s.Topic)
	dp := kmsg.NewDeleteRecordsRequestTopicPartition()
	dp.Partition, dp.Offset = s.Partition, s.Offset
	dt.Partitions = append(dt.Partitions, dp)
	req.Topics = append(req.Topics, dt)
	var got *kmsg.DeleteRecordsResponse
	if err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.ask(s, w.node(s, w.leader(s)), req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.DeleteRecordsResponse)
		return got.Topics[0].Partitions[0].ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	return w.words.words(got)
}

func (w *world) endOfEpoch(s step) string {
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.ReplicaID = -1
	et := kmsg.NewOffsetForLeaderEpochRequestTopic()
	et.Topic = w.topic(s.Topic)
	ep := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
	ep.Partition, ep.CurrentLeaderEpoch, ep.LeaderEpoch = s.Partition, -1, s.Count
	et.Partitions = append(et.Partitions, ep)
	req.Topics = append(req.Topics, et)
	var got *kmsg.OffsetForLeaderEpochResponse
	if err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.ask(s, w.node(s, w.leader(s)), req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.OffsetForLeaderEpochResponse)
		return got.Topics[0].Partitions[0].ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	return w.words.words(got)
}

// alter changes configurations, and waits until brokers and sluice go by them.
func (w *world) alter(s step) string {
	topic := w.topic(s.Topic)
	var req kmsg.Request
	if s.How == "legacy" {
		legacy := kmsg.NewPtrAlterConfigsRequest()
		res := kmsg.NewAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
		for _, key := range sortedConfigs(s.Configs) {
			value := s.Configs[key]
			c := kmsg.NewAlterConfigsRequestResourceConfig()
			c.Name, c.Value = key, &value
			res.Configs = append(res.Configs, c)
		}
		legacy.Resources = append(legacy.Resources, res)
		req = legacy
	} else {
		incremental := kmsg.NewPtrIncrementalAlterConfigsRequest()
		res := kmsg.NewIncrementalAlterConfigsRequestResource()
		res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
		for _, key := range sortedConfigs(s.Configs) {
			value := s.Configs[key]
			c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
			c.Name, c.Value = key, &value
			if value == "" {
				c.Op, c.Value = kmsg.IncrementalAlterConfigOpDelete, nil
			}
			res.Configs = append(res.Configs, c)
		}
		incremental.Resources = append(incremental.Resources, res)
		req = incremental
	}
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	if w.state(s.Topic).exists {
		w.settleConfigs(topic)
	}
	return w.words.words(resp)
}

// settleConfigs waits until all brokers say the same of a topic's settings.
func (w *world) settleConfigs(topic string) {
	time.Sleep(100 * time.Millisecond) // it is the controller that has answered
	w.await("brokers know a topic's settings", func() (bool, string) {
		var all []string
		for _, id := range w.x.kafka.Nodes() {
			req := kmsg.NewPtrDescribeConfigsRequest()
			res := kmsg.NewDescribeConfigsRequestResource()
			res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
			req.Resources = append(req.Resources, res)
			resp, err := w.direct.Broker(int(id)).Request(w.ctx, req)
			if err != nil {
				return false, err.Error()
			}
			all = append(all, w.words.words(resp))
		}
		return len(slices.Compact(all)) == 1, "they differ"
	})
	time.Sleep(50 * time.Millisecond)
	for _, s := range w.x.replicas {
		s.Cluster().Invalidate(topic) // the replica that was not asked reads it within ten seconds
	}
}

func (w *world) elect(s step) string {
	req := kmsg.NewPtrElectLeadersRequest()
	req.ElectionType, req.TimeoutMillis = 0, 20_000
	et := kmsg.NewElectLeadersRequestTopic()
	et.Topic, et.Partitions = w.topic(s.Topic), []int32{s.Partition}
	req.Topics = append(req.Topics, et)
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	if w.exists(s) {
		w.settle(s.Topic)
	}
	return w.words.words(resp)
}

func (w *world) reassign(s step) string {
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.TimeoutMillis = 20_000
	rt := kmsg.NewAlterPartitionAssignmentsRequestTopic()
	rt.Topic = w.topic(s.Topic)
	rp := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
	rp.Partition = s.Partition
	if len(s.Replicas) > 0 {
		rp.Replicas = w.ids(s, s.Replicas[0])
	}
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	got := resp.(*kmsg.AlterPartitionAssignmentsResponse)
	if w.exists(s) && got.ErrorCode == 0 && got.Topics[0].Partitions[0].ErrorCode == 0 && rp.Replicas != nil {
		st := w.state(s.Topic)
		st.replicas = slices.Clone(st.replicas)
		st.replicas[s.Partition] = s.Replicas[0]
		w.settle(s.Topic)
	}
	return w.words.words(got)
}

func (w *world) commitOffset(s step) string {
	w.groups[s.Group] = true
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = w.group(s.Group), -1
	ct := kmsg.NewOffsetCommitRequestTopic()
	ct.Topic, ct.TopicID = w.topic(s.Topic), w.state(s.Topic).id
	cp := kmsg.NewOffsetCommitRequestTopicPartition()
	note := "a note"
	cp.Partition, cp.Offset, cp.LeaderEpoch, cp.Metadata = s.Partition, s.Offset, -1, &note
	ct.Partitions = append(ct.Partitions, cp)
	req.Topics = append(req.Topics, ct)
	var got *kmsg.OffsetCommitResponse
	if err := w.insist(s, w.exists(s), func() (int16, error) {
		resp, err := w.askAny(s, req)
		if err != nil {
			return 0, err
		}
		got = resp.(*kmsg.OffsetCommitResponse)
		return got.Topics[0].Partitions[0].ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	return w.words.words(got)
}

func (w *world) deleteOffset(s step) string {
	req := kmsg.NewPtrOffsetDeleteRequest()
	req.Group = w.group(s.Group)
	dt := kmsg.NewOffsetDeleteRequestTopic()
	dt.Topic = w.topic(s.Topic)
	dp := kmsg.NewOffsetDeleteRequestTopicPartition()
	dp.Partition = s.Partition
	dt.Partitions = append(dt.Partitions, dp)
	req.Topics = append(req.Topics, dt)
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	return w.words.words(resp)
}

func (w *world) deleteGroup(s step) string {
	req := kmsg.NewPtrDeleteGroupsRequest()
	req.Groups = []string{w.group(s.Group)}
	resp, err := w.askAny(s, req)
	if err != nil {
		return failure(err)
	}
	return w.words.words(resp)
}

// member joins a group of the classic protocol, is described, commits and
// leaves.
func (w *world) member(s step) string {
	w.groups[s.Group] = true
	var lines []string
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis, join.ProtocolType = w.group(s.Group), 30_000, 30_000, "consumer"
	proto := kmsg.NewJoinGroupRequestProtocol()
	subscription := kmsg.NewConsumerMemberMetadata()
	subscription.Topics = []string{w.topic(s.Topic)}
	proto.Name, proto.Metadata = "range", subscription.AppendTo(nil)
	join.Protocols = append(join.Protocols, proto)
	var joined *kmsg.JoinGroupResponse
	if err := w.insist(s, true, func() (int16, error) {
		resp, err := w.askAny(s, join)
		if err != nil {
			return 0, err
		}
		joined = resp.(*kmsg.JoinGroupResponse)
		if joined.ErrorCode == 79 { // MEMBER_ID_REQUIRED
			join.MemberID = joined.MemberID
			return 14, nil
		}
		return joined.ErrorCode, nil
	}); err != nil {
		return failure(err)
	}
	lines = append(lines, w.words.words(joined))
	if joined.ErrorCode != 0 {
		return strings.Join(lines, "\n")
	}
	protocol, kind := "range", "consumer"
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID, sync.Protocol, sync.ProtocolType = join.Group, joined.Generation, joined.MemberID, &protocol, &kind
	part := kmsg.NewSyncGroupRequestGroupAssignment()
	assigned := kmsg.NewConsumerMemberAssignment()
	at := kmsg.NewConsumerMemberAssignmentTopic()
	at.Topic, at.Partitions = w.topic(s.Topic), []int32{s.Partition}
	assigned.Topics = append(assigned.Topics, at)
	part.MemberID, part.MemberAssignment = joined.MemberID, assigned.AppendTo(nil)
	sync.GroupAssignment = append(sync.GroupAssignment, part)
	beat := kmsg.NewPtrHeartbeatRequest()
	beat.Group, beat.Generation, beat.MemberID = join.Group, joined.Generation, joined.MemberID
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group, commit.Generation, commit.MemberID = join.Group, joined.Generation, joined.MemberID
	ct := kmsg.NewOffsetCommitRequestTopic()
	ct.Topic, ct.TopicID = w.topic(s.Topic), w.state(s.Topic).id
	cp := kmsg.NewOffsetCommitRequestTopicPartition()
	cp.Partition, cp.Offset, cp.LeaderEpoch = s.Partition, s.Offset, -1
	ct.Partitions = append(ct.Partitions, cp)
	commit.Topics = append(commit.Topics, ct)
	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{join.Group}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.MemberID = join.Group, joined.MemberID
	gone := kmsg.NewLeaveGroupRequestMember()
	gone.MemberID = joined.MemberID
	leave.Members = append(leave.Members, gone)
	for _, req := range []kmsg.Request{sync, beat, commit, describe, leave} {
		resp, err := w.askAny(s, req)
		if err != nil {
			lines = append(lines, failure(err))
			continue
		}
		if d, ok := resp.(*kmsg.DescribeGroupsResponse); ok { // the client's name is not what is compared
			for i := range d.Groups {
				for j := range d.Groups[i].Members {
					d.Groups[i].Members[j].ClientID = ""
				}
			}
		}
		lines = append(lines, w.words.words(resp))
	}
	return strings.Join(lines, "\n")
}

// observe says all that can be asked of a topic.
func (w *world) observe(s step) string {
	topic, st := w.topic(s.Topic), w.state(s.Topic)
	var lines []string
	say := func(what string, resp kmsg.Response, err error) {
		said := ""
		if err != nil {
			said = failure(err)
		} else {
			said = w.words.words(resp)
		}
		lines = append(lines, what+": "+said)
	}
	anyone := w.node(s, 1)
	metadata := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = &topic
	metadata.Topics = append(metadata.Topics, mt)
	metadata.IncludeTopicAuthorizedOperations = true
	resp, err := w.ask(s, anyone, metadata)
	say("metadata", resp, err)
	if s.As == "" {
		described := kmsg.NewPtrDescribeTopicPartitionsRequest()
		described.ResponsePartitionLimit = 100
		described.Topics = append(described.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: topic})
		resp, err = w.ask(s, anyone, described)
		say("partitions", resp, err)
	}
	configs := kmsg.NewPtrDescribeConfigsRequest()
	res := kmsg.NewDescribeConfigsRequestResource()
	res.ResourceType, res.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	configs.Resources, configs.IncludeSynonyms = append(configs.Resources, res), true
	resp, err = w.ask(s, anyone, configs)
	say("configurations", resp, err)
	for partition := range len(st.leaders) {
		one := s
		one.Partition = int32(partition)
		for _, at := range []int64{-1, -2, -3, -4, -5, baseTime, baseTime + 5_000, baseTime + 25_000, baseTime + 49_000, farFuture} {
			one.Offset = at
			lines = append(lines, fmt.Sprintf("offset of %d: %s", at, w.offset(one)))
		}
		one.Offset = 0
		one.Op = "fetch"
		lines = append(lines, fmt.Sprintf("partition %d from 0: %s", partition, w.fetch(one)))
		one.Offset = w.earliest(one)
		lines = append(lines, fmt.Sprintf("partition %d from its start: %s", partition, w.fetch(one)))
		one.Offset = 0
		for _, epoch := range []int32{0, 1000} {
			one.Count = epoch
			lines = append(lines, fmt.Sprintf("epoch %d: %s", epoch, w.endOfEpoch(one)))
		}
		if s.As == "" {
			producers := kmsg.NewPtrDescribeProducersRequest()
			pt := kmsg.NewDescribeProducersRequestTopic()
			pt.Topic, pt.Partitions = topic, []int32{int32(partition)}
			producers.Topics = append(producers.Topics, pt)
			resp, err = w.ask(s, w.node(s, w.leader(one)), producers)
			say("producers", resp, err)
		}
	}
	return strings.Join(lines, "\n")
}

func (w *world) earliest(s step) (offset int64) {
	_ = w.insist(s, true, func() (int16, error) {
		resp, err := w.ask(s, w.node(s, w.leader(s)), listing(w.topic(s.Topic), s.Partition, -2, false))
		if err != nil {
			return 0, err
		}
		p := resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0]
		offset = p.Offset
		return p.ErrorCode, nil
	})
	return offset
}

// observeGroup says all that can be asked of a group.
func (w *world) observeGroup(s step) string {
	group := w.group(s.Group)
	var lines []string
	for i := range topicsOfScripts {
		if !w.state(i).exists {
			continue
		}
		req := kmsg.NewPtrOffsetFetchRequest()
		req.RequireStable = true
		fg := kmsg.NewOffsetFetchRequestGroup()
		fg.Group, fg.MemberEpoch = group, -1
		ft := kmsg.NewOffsetFetchRequestGroupTopic()
		ft.Topic, ft.TopicID = w.topic(i), w.state(i).id
		for partition := range w.state(i).leaders {
			ft.Partitions = append(ft.Partitions, int32(partition))
		}
		fg.Topics = append(fg.Topics, ft)
		req.Groups = append(req.Groups, fg)
		resp, err := w.askAny(s, req)
		if err != nil {
			lines = append(lines, failure(err))
			continue
		}
		lines = append(lines, w.words.words(resp))
	}
	for _, req := range []kmsg.Request{
		&kmsg.DescribeGroupsRequest{Groups: []string{group}, IncludeAuthorizedOperations: true},
		&kmsg.ConsumerGroupDescribeRequest{Groups: []string{group}},
	} {
		resp, err := w.askAny(s, req)
		if err != nil {
			lines = append(lines, failure(err))
			continue
		}
		lines = append(lines, w.words.words(resp))
	}
	// Each broker lists the groups that it coordinates.
	resp, err := w.askAny(s, kmsg.NewPtrListGroupsRequest())
	if err != nil {
		return strings.Join(append(lines, failure(err)), "\n")
	}
	listed := 0
	for _, g := range resp.(*kmsg.ListGroupsResponse).Groups {
		if g.Group == group {
			listed++
			lines = append(lines, w.words.words(g))
		}
	}
	return strings.Join(append(lines, fmt.Sprintf("listed %d times", listed)), "\n")
}

// observeTransaction says all that can be asked of a transactional id.
func (w *world) observeTransaction(s step) string {
	txn := w.txn(s.Producer)
	if p := w.producers[s.Producer]; p == nil || p.txn == "" {
		return "there is none"
	}
	describe := kmsg.NewPtrDescribeTransactionsRequest()
	describe.TransactionalIDs = []string{txn}
	resp, err := w.askAny(s, describe)
	if err != nil {
		return failure(err)
	}
	lines := []string{w.words.words(resp)}
	if resp, err = w.askAny(s, kmsg.NewPtrListTransactionsRequest()); err != nil {
		return failure(err)
	}
	for _, l := range resp.(*kmsg.ListTransactionsResponse).TransactionStates {
		if l.TransactionalID == txn {
			lines = append(lines, w.words.words(l))
		}
	}
	sort.Strings(lines[1:])
	return strings.Join(lines, "\n")
}
