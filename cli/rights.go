package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/lowlatency"
	"github.com/sluice-kafka/sluice/tiers"
)

// missingRights says of topics of diskless classes what sluice's own principal
// would have to do with them in the background, and may not, with the remedy.
func missingRights(ctx context.Context, cfg *config.Config, cluster *lowlatency.Cluster, classes map[string]*tiers.Class) (map[string]string, error) {
	topics := slices.Sorted(maps.Keys(classes))
	limits, err := cluster.SizeLimits(ctx, topics)
	if err != nil && len(limits) == 0 {
		return nil, err // else some topics may not be described, which is told where they are placed
	}
	allowed, err := cluster.Allowed(ctx, topics)
	if err != nil {
		return nil, fmt.Errorf("asking what sluice's own principal may do: %w", err)
	}
	principal := "PRINCIPAL"
	if cfg.Kafka.SASL.Username != "" {
		principal = "User:" + cfg.Kafka.SASL.Username
	}
	missing := make(map[string]string)
	for topic, class := range classes {
		needs := map[string]kmsg.ACLOperation{}
		without := ""
		switch limit, known := limits[topic]; {
		case class.Audit && cfg.Audit.Archive:
			needs["Read"] = kmsg.ACLOperationRead
			without = "it is not archived"
		case !class.Audit && cfg.Retention.Enabled && known && limit >= 0:
			needs["Read"], needs["Delete"] = kmsg.ACLOperationRead, kmsg.ACLOperationDelete
			without = "its log is not cut to retention.bytes of original bytes, and keeps more"
		}
		may, told := allowed[topic]
		var lacks, options []string
		for _, name := range slices.Sorted(maps.Keys(needs)) {
			if told && !may.Has(needs[name]) {
				lacks, options = append(lacks, needs[name].String()), append(options, "--operation "+name)
			}
		}
		if len(lacks) > 0 {
			missing[topic] = fmt.Sprintf("sluice's own principal may not %s: %s; allow it with kafka-acls --bootstrap-server %s --add --allow-principal %s %s --topic %s",
				strings.Join(lacks, " and "), without, cfg.Kafka.Bootstrap[0], principal, strings.Join(options, " "), topic)
		}
	}
	return missing, nil
}
