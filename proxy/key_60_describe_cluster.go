package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// DescribeCluster (60), v0–v2: mapped.
//
//   - It lists real brokers only, at this proxy's low-latency ports: with
//     diskless ids here, Java's admin tools would ask every broker twice.
//   - A broker whose id is outside listen.node_ids is left out.

func (c *conn) describeCluster(r *request) error {
	r.answer = rewrite(kmsg.NewPtrDescribeClusterResponse, func(resp *kmsg.DescribeClusterResponse) error {
		kept := resp.Brokers[:0]
		for _, b := range resp.Brokers {
			port, ok := c.p.port(b.NodeID)
			if !ok {
				continue
			}
			b.Host, b.Port = c.p.opt.Layout.Advertise, port
			kept = append(kept, b)
		}
		resp.Brokers = kept
		return nil
	})
	return nil
}
