package proxy

import (
	"fmt"
	"slices"
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
//   - A described topic has three more entries, read-only, so that any tool shows
//     where its batches go: sluice.class, sluice.tier and sluice.rule. To set one
//     is refused with INVALID_CONFIG, also in CreateTopics; AlterConfigs, which
//     names all that a topic has, may give them back as they are. Where no rule
//     leads to a diskless class there are none.

const (
	errInvalidConfig   = 40
	errPolicyViolation = 44

	ownConfigs  = "sluice."
	classConfig = ownConfigs + "class"
	tierConfig  = ownConfigs + "tier"
	ruleConfig  = ownConfigs + "rule"
)

// ownConfig is one entry of ours.
type ownConfig struct{ name, value, documentation string }

// ownConfigsOf are a topic's.
func (c *conn) ownConfigsOf(topic string, facts tiers.TopicFacts) []ownConfig {
	router := c.p.opt.Router()
	if !router.HasDiskless() {
		return nil
	}
	placed := router.Place(topic, facts)
	tier, rule := placed.Tier.String(), "default_class"
	if placed.Reason != tiers.ByClass {
		tier += " (" + string(placed.Reason) + ")"
	}
	if placed.Rule.Index >= 0 {
		rule = fmt.Sprintf("topics[%d]: %s", placed.Rule.Index, placed.Rule.Pattern)
		if placed.Rule.Line > 0 {
			rule = fmt.Sprintf("line %d: %s", placed.Rule.Line, placed.Rule.Pattern)
		}
	}
	return []ownConfig{
		{classConfig, placed.Class.Name, "The topic's latency class, by the rules of " + c.p.configuration() + "."},
		{tierConfig, tier, "Where the payloads of its next batches go: into the brokers' log, or into objects."},
		{ruleConfig, rule, "What decides its class in " + c.p.configuration() + "."},
	}
}

// configuration is what clients are told the file is called.
func (p *Proxy) configuration() string {
	if p.opt.Configuration == "" {
		return "sluice's configuration"
	}
	return "sluice's configuration file " + p.opt.Configuration
}

// refusesOwn decides whether setting a configuration must be refused because
// it is one of ours.
func (c *conn) refusesOwn(kind kmsg.ConfigResourceType, topic, config string) (refusal, bool) {
	if kind != kmsg.ConfigResourceTypeTopic || !strings.HasPrefix(config, ownConfigs) || !c.p.opt.Router().HasDiskless() {
		return refusal{}, false
	}
	return refusal{kind, topic, errInvalidConfig, fmt.Sprintf("%s of topic %q cannot be set here: it shows what %s says. Change the rules under topics: there", config, topic, c.p.configuration())}, true
}

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
	if err := c.decodeRequest(r, req); err != nil {
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
	asked := make(map[string][]string) // which configurations of a topic; nil for all
	for _, res := range req.Resources {
		if res.ResourceType == kmsg.ConfigResourceTypeTopic && c.p.opt.Router().HasDiskless() {
			asked[res.ResourceName] = res.ConfigNames
		}
	}
	if len(names) > 0 {
		replaceBody(r, req)
	}
	if len(names) == 0 && len(asked) == 0 {
		return nil
	}
	r.answer = rewrite(kmsg.NewPtrDescribeConfigsResponse, func(resp *kmsg.DescribeConfigsResponse) error {
		var topics []string
		var at []int
		for i := range resp.Resources {
			res := &resp.Resources[i]
			res.ResourceName = names.back(res.ResourceName)
			// Who may not describe a topic learns nothing of it here either.
			if _, ok := asked[res.ResourceName]; ok && res.ResourceType == kmsg.ConfigResourceTypeTopic && res.ErrorCode == 0 {
				topics, at = append(topics, res.ResourceName), append(at, i)
			}
		}
		for i, p := range c.placeAll(c.present, topics) {
			c.addOwn(&resp.Resources[at[i]], p.facts, asked[topics[i]], req.IncludeDocumentation)
		}
		return nil
	})
	return nil
}

// addOwn adds our entries to a described topic.
func (c *conn) addOwn(res *kmsg.DescribeConfigsResponseResource, facts tiers.TopicFacts, only []string, documented bool) {
	for _, cfg := range res.Configs {
		if cfg.Name == "cleanup.policy" && cfg.Value != nil { // newer than what is remembered
			facts.Known, facts.Compacted = true, strings.Contains(*cfg.Value, "compact")
		}
	}
	for _, own := range c.ownConfigsOf(res.ResourceName, facts) {
		// Brokers take an empty list for all, too.
		if len(only) > 0 && !slices.Contains(only, own.name) {
			continue
		}
		cfg := kmsg.NewDescribeConfigsResponseResourceConfig()
		cfg.Name, cfg.Value, cfg.ReadOnly, cfg.ConfigType = own.name, &own.value, true, kmsg.ConfigTypeString
		// Tools show it, and those that copy a topic's own settings do not.
		cfg.Source = kmsg.ConfigSourceStaticBrokerConfig
		if documented {
			cfg.Documentation = &own.documentation
		}
		res.Configs = append(res.Configs, cfg)
	}
}

// refusal is a resource that is not forwarded.
type refusal struct {
	kind    kmsg.ConfigResourceType
	name    string
	code    int16
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
	return refusal{kind, topic, errPolicyViolation, fmt.Sprintf("topic %q is in the diskless tier (class %s): compaction would destroy its records. "+
		"Give it a low-latency class in sluice's configuration first, and wait until retention has removed what is in objects", topic, placement.Class.Name)}, true
}

// isOwn reports whether a value is one that describing the topic shows, whatever
// was known of it then.
func (c *conn) isOwn(topic, config string, value *string) bool {
	for _, facts := range []tiers.TopicFacts{{Known: true}, {Known: true, Compacted: true}, {Internal: true}, {}} {
		for _, own := range c.ownConfigsOf(topic, facts) {
			if own.name == config && value != nil && *value == own.value {
				return true
			}
		}
	}
	return false
}

// alteration is what becomes of a request that changes configurations.
type alteration struct {
	names   renamed
	topics  []string // of what is forwarded
	refused []refusal
	changed bool // it is not forwarded as it came
}

// alter maps the resources of a request and returns those that go on. refuse
// looks at the configurations of one.
func alter[R any](a *alteration, resources []R, at func(*R) (kmsg.ConfigResourceType, *string), refuse func(*R) (refusal, bool)) []R {
	a.names = renamed{}
	kept := resources[:0]
	for _, res := range resources {
		kind, name := at(&res)
		if real, ok := realBroker(kind, *name); ok {
			a.names[real], *name, a.changed = *name, real, true
		}
		if ref, ok := refuse(&res); ok {
			a.refused, a.changed = append(a.refused, ref), true
			continue
		}
		if kind == kmsg.ConfigResourceTypeTopic {
			a.topics = append(a.topics, *name)
		}
		kept = append(kept, res)
	}
	return kept
}

// outcome gives resources back their names and adds those that were refused. R
// is the resource of either answer; they are the same but for their names.
func outcome[R ~struct {
	ErrorCode    int16
	ErrorMessage *string
	ResourceType kmsg.ConfigResourceType
	ResourceName string
	UnknownTags  kmsg.Tags
}](a *alteration, resources []R) []R {
	for i, res := range resources {
		was := kmsg.AlterConfigsResponseResource(res)
		was.ResourceName = a.names.back(was.ResourceName)
		resources[i] = R(was)
	}
	for _, ref := range a.refused {
		res := kmsg.NewAlterConfigsResponseResource()
		res.ErrorCode, res.ErrorMessage = ref.code, &ref.message
		res.ResourceType, res.ResourceName = ref.kind, ref.name
		resources = append(resources, R(res))
	}
	return resources
}

func (c *conn) alterConfigs(r *request) error {
	req := kmsg.NewPtrAlterConfigsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	var a alteration
	req.Resources = alter(&a, req.Resources,
		func(res *kmsg.AlterConfigsRequestResource) (kmsg.ConfigResourceType, *string) {
			return res.ResourceType, &res.ResourceName
		},
		func(res *kmsg.AlterConfigsRequestResource) (refusal, bool) {
			var configs []kmsg.AlterConfigsRequestResourceConfig
			for _, cfg := range res.Configs {
				if ref, ok := c.compacts(res.ResourceType, res.ResourceName, cfg.Name, cfg.Value); ok {
					return ref, true
				}
				if ref, own := c.refusesOwn(res.ResourceType, res.ResourceName, cfg.Name); own {
					if !c.isOwn(res.ResourceName, cfg.Name, cfg.Value) {
						return ref, true
					}
					a.changed = true
					continue
				}
				configs = append(configs, cfg)
			}
			res.Configs = configs
			return refusal{}, false
		})
	if a.changed {
		replaceBody(r, req)
		r.answer = rewrite(kmsg.NewPtrAlterConfigsResponse, func(resp *kmsg.AlterConfigsResponse) error {
			resp.Resources = outcome(&a, resp.Resources)
			return nil
		})
	}
	c.invalidateAfter(r, a.topics)
	return nil
}

func (c *conn) incrementalAlterConfigs(r *request) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	if err := c.decodeRequest(r, req); err != nil {
		return err
	}
	var a alteration
	req.Resources = alter(&a, req.Resources,
		func(res *kmsg.IncrementalAlterConfigsRequestResource) (kmsg.ConfigResourceType, *string) {
			return res.ResourceType, &res.ResourceName
		},
		func(res *kmsg.IncrementalAlterConfigsRequestResource) (refusal, bool) {
			for _, cfg := range res.Configs {
				if ref, own := c.refusesOwn(res.ResourceType, res.ResourceName, cfg.Name); own {
					return ref, true
				}
				if cfg.Op == kmsg.IncrementalAlterConfigOpDelete || cfg.Op == kmsg.IncrementalAlterConfigOpSubtract {
					continue
				}
				if ref, ok := c.compacts(res.ResourceType, res.ResourceName, cfg.Name, cfg.Value); ok {
					return ref, true
				}
			}
			return refusal{}, false
		})
	if a.changed {
		replaceBody(r, req)
		r.answer = rewrite(kmsg.NewPtrIncrementalAlterConfigsResponse, func(resp *kmsg.IncrementalAlterConfigsResponse) error {
			resp.Resources = outcome(&a, resp.Resources)
			return nil
		})
	}
	c.invalidateAfter(r, a.topics)
	return nil
}
