package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// ListGroups (16), v0–v5; DescribeLogDirs (35), v0–v5; ListTransactions (66),
// v0–v2: answered here with an empty success on a diskless listener, relayed
// elsewhere.
//
// Admin clients ask every broker they know and concatenate the answers; a
// broker and its diskless twin would be counted twice.

func (c *conn) answerEmpty(r *request) error {
	if !c.diskless {
		return nil
	}
	r.local = encodeResponse(r, kmsg.ResponseForKey(r.api.Key))
	return nil
}
