package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// FindCoordinator (10), v0–v6: mapped.
//
//   - Coordinators keep their real ids and are named at this proxy's
//     low-latency ports.
//   - One whose id is outside listen.node_ids is COORDINATOR_NOT_AVAILABLE.

const errCoordinatorNotAvailable = 15

func (c *conn) findCoordinator(r *request) error {
	r.answer = rewrite(kmsg.NewPtrFindCoordinatorResponse, func(resp *kmsg.FindCoordinatorResponse) error {
		if resp.Version <= 3 {
			c.mapCoordinator(&resp.NodeID, &resp.Host, &resp.Port, &resp.ErrorCode)
		}
		for i := range resp.Coordinators {
			co := &resp.Coordinators[i]
			c.mapCoordinator(&co.NodeID, &co.Host, &co.Port, &co.ErrorCode)
		}
		return nil
	})
	return nil
}

func (c *conn) mapCoordinator(node *int32, host *string, port *int32, code *int16) {
	if *node < 0 {
		return
	}
	at, ok := c.p.port(*node)
	if !ok {
		*node, *host, *port, *code = -1, "", -1, errCoordinatorNotAvailable
		return
	}
	*host, *port = c.p.opt.Layout.Advertise, at
}
