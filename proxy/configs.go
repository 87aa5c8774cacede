package proxy

import (
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/tiers"
)

// DescribeConfigs (32), v0–v4; AlterConfigs (33), v0–v2;
// IncrementalAlterConfigs (44), v0–v1: mapped.
//
//   - Broker resources named by a diskless id are mapped to the real one, and
//     back in the answer.
//   - cleanup.policy=compact on a topic that is in the diskless tier is refused
//     with POLICY_VIOLATION: compaction would destroy placeholders, whose
//     records have no keys. The other resources of the request go on.

const errPolicyViolation = 44

// renamed remembers what a client called a resource.
type renamed map[string]string

func (n renamed) back(name string) string {
	if was, ok := n[name]; ok {
		return was
	}
	return name
}

func (c *conn) describeConfigs(r *request) error {
	req := kmsg.NewPtrDescribeConfigsRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	names := renamed{}
	for i := range req.Resources {
		res := &req.Resources[i]
		if real, ok := realBroker(res.ResourceType, res.ResourceName); ok {
			names[real] = res.ResourceName
			res.ResourceName = real
		}
	}
	if len(names) == 0 {
		return nil
	}
	replaceBody(r, req)
	r.answer = rewrite(kmsg.NewPtrDescribeConfigsResponse, func(resp *kmsg.DescribeConfigsResponse) error {
		for i := range resp.Resources {
			resp.Resources[i].ResourceName = names.back(resp.Resources[i].ResourceName)
		}
		return nil
	})
	return nil
}

// refusal is a resource that is not forwarded.
type refusal struct {
	kind    kmsg.ConfigResourceType
	name    string
	message string
}

// compacts decides whether a change of cleanup.policy must be refused.
func (c *conn) compacts(kind kmsg.ConfigResourceType, topic, config string, value *string) (refusal, bool) {
	if kind != kmsg.ConfigResourceTypeTopic || config != "cleanup.policy" || value == nil || !strings.Contains(*value, "compact") {
		return refusal{}, false
	}
	placement, _ := c.place(c.present, topic)
	if placement.Tier != tiers.Diskless {
		return refusal{}, false
	}
	c.p.metrics.compactedAfter.Inc()
	return refusal{kind, topic, fmt.Sprintf("topic %q is in the diskless tier (class %s): compaction would destroy its records. "+
		"Give it a low-latency class in sluice's configuration first, and wait until retention has removed what is in objects", topic, placement.Class.Name)}, true
}

func (c *conn) alterConfigs(r *request) error {
	req := kmsg.NewPtrAlterConfigsRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	names, changed := renamed{}, false
	var topics []string
	var refused []refusal
	kept := req.Resources[:0]
resources:
	for _, res := range req.Resources {
		if real, ok := realBroker(res.ResourceType, res.ResourceName); ok {
			names[real], res.ResourceName, changed = res.ResourceName, real, true
		}
		for _, cfg := range res.Configs {
			if ref, ok := c.compacts(res.ResourceType, res.ResourceName, cfg.Name, cfg.Value); ok {
				refused, changed = append(refused, ref), true
				continue resources
			}
		}
		if res.ResourceType == kmsg.ConfigResourceTypeTopic {
			topics = append(topics, res.ResourceName)
		}
		kept = append(kept, res)
	}
	req.Resources = kept
	if changed {
		replaceBody(r, req)
		r.answer = rewrite(kmsg.NewPtrAlterConfigsResponse, func(resp *kmsg.AlterConfigsResponse) error {
			for i := range resp.Resources {
				resp.Resources[i].ResourceName = names.back(resp.Resources[i].ResourceName)
			}
			for _, ref := range refused {
				res := kmsg.NewAlterConfigsResponseResource()
				res.ErrorCode, res.ErrorMessage = errPolicyViolation, &ref.message
				res.ResourceType, res.ResourceName = ref.kind, ref.name
				resp.Resources = append(resp.Resources, res)
			}
			return nil
		})
	}
	c.invalidateAfter(r, topics)
	return nil
}

func (c *conn) incrementalAlterConfigs(r *request) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	if err := decodeRequest(r, req); err != nil {
		return err
	}
	names, changed := renamed{}, false
	var topics []string
	var refused []refusal
	kept := req.Resources[:0]
resources:
	for _, res := range req.Resources {
		if real, ok := realBroker(res.ResourceType, res.ResourceName); ok {
			names[real], res.ResourceName, changed = res.ResourceName, real, true
		}
		for _, cfg := range res.Configs {
			if cfg.Op == kmsg.IncrementalAlterConfigOpDelete || cfg.Op == kmsg.IncrementalAlterConfigOpSubtract {
				continue
			}
			if ref, ok := c.compacts(res.ResourceType, res.ResourceName, cfg.Name, cfg.Value); ok {
				refused, changed = append(refused, ref), true
				continue resources
			}
		}
		if res.ResourceType == kmsg.ConfigResourceTypeTopic {
			topics = append(topics, res.ResourceName)
		}
		kept = append(kept, res)
	}
	req.Resources = kept
	if changed {
		replaceBody(r, req)
		r.answer = rewrite(kmsg.NewPtrIncrementalAlterConfigsResponse, func(resp *kmsg.IncrementalAlterConfigsResponse) error {
			for i := range resp.Resources {
				resp.Resources[i].ResourceName = names.back(resp.Resources[i].ResourceName)
			}
			for _, ref := range refused {
				res := kmsg.NewIncrementalAlterConfigsResponseResource()
				res.ErrorCode, res.ErrorMessage = errPolicyViolation, &ref.message
				res.ResourceType, res.ResourceName = ref.kind, ref.name
				resp.Resources = append(resp.Resources, res)
			}
			return nil
		})
	}
	c.invalidateAfter(r, topics)
	return nil
}
