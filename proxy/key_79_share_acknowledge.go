package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// ShareAcknowledge (79), v1–v2 (KIP-932): mapped.
//
//   - On a diskless listener the member id is the derived one, under which
//     ShareFetch has acquired there.
//   - CurrentLeader and NodeEndpoints are mapped.

func (c *conn) shareAcknowledge(r *request) error {
	req := kmsg.NewPtrShareAcknowledgeRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	defer c.forgo(r) // brokers may hold it for long
	if c.shareAs(&req.MemberID) {
		replaceBody(r, req)
	}
	if req.ShareSessionEpoch < 0 {
		c.shares.end(req.GroupID, req.MemberID)
	}
	r.answer = (*conn).shareAcknowledgeAnswer
	return nil
}

func (c *conn) shareAcknowledgeAnswer(r *request, in *frame) ([][]byte, error) {
	resp := kmsg.NewPtrShareAcknowledgeResponse()
	if err := decodeResponse(r, in, resp); err != nil {
		return nil, err
	}
	changed := len(resp.NodeEndpoints) > 0
	resp.NodeEndpoints = addresses(c.p, c.p.opt.Router().HasDiskless(), resp.NodeEndpoints,
		func(b kmsg.ShareAcknowledgeResponseNodeEndpoint) int32 { return b.NodeID },
		func(b *kmsg.ShareAcknowledgeResponseNodeEndpoint, id int32, host string, port int32) {
			b.NodeID, b.Host, b.Port = id, host, port
		})
	for i := range resp.Topics {
		t := &resp.Topics[i]
		topic, known := c.p.topics.Get(t.TopicID)
		for j := range t.Partitions {
			if p := &t.Partitions[j]; leaderHint(p.ErrorCode) {
				p.CurrentLeader.LeaderID = c.shownLeader(p.CurrentLeader.LeaderID, topic, known)
				changed = true
			}
		}
	}
	if !changed {
		return nil, nil
	}
	return [][]byte{encodeResponse(r, resp)}, nil
}
