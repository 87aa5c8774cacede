package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// ShareAcknowledge (79), v1–v2 (KIP-932): mapped.
//
//   - On a diskless listener the member id is the derived one, under which
//     ShareFetch has acquired there.
//   - CurrentLeader and NodeEndpoints are mapped.

func (c *conn) shareAcknowledge(r *request) error {
	req := kmsg.NewPtrShareAcknowledgeRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
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
	endpoints := make([]kmsg.ShareFetchResponseNodeEndpoint, 0, len(resp.NodeEndpoints))
	for _, e := range resp.NodeEndpoints {
		endpoints = append(endpoints, kmsg.ShareFetchResponseNodeEndpoint(e))
	}
	c.mapShareEndpoints(&endpoints)
	resp.NodeEndpoints = nil
	for _, e := range endpoints {
		resp.NodeEndpoints = append(resp.NodeEndpoints, kmsg.ShareAcknowledgeResponseNodeEndpoint(e))
	}
	for i := range resp.Topics {
		t := &resp.Topics[i]
		topic, known := c.p.topics.Get(t.TopicID)
		for j := range t.Partitions {
			if p := &t.Partitions[j]; leaderHint(p.ErrorCode) {
				changed = c.mapShareLeader(&p.CurrentLeader.LeaderID, topic, known) || changed
			}
		}
	}
	if !changed {
		return nil, nil
	}
	return [][]byte{encodeResponse(r, resp)}, nil
}
