package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/sluice-kafka/sluice/tiers"
)

// fault is what is wrong with a value, and where in it.
type fault struct {
	offset       int // in bytes
	what, remedy string
}

// assign reads a value as the key wants it and puts it where into points.
func (k key) assign(into any, value string) *fault {
	switch into := into.(type) {
	case *string:
		return k.assignText(into, value)
	case *bool:
		switch value {
		case "true", "false":
			*into = value == "true"
		default:
			return &fault{what: k.isNot(value), remedy: "write true or false"}
		}
	case *int:
		n, err := strconv.Atoi(value)
		if err != nil {
			return &fault{what: k.isNot(value), remedy: "write a whole number" + k.span()}
		}
		if !k.within(int64(n)) {
			return k.outside(value)
		}
		*into = n
	case *int64:
		if k.auto && value == "auto" {
			*into = 0
			return nil
		}
		n, ok := parseSize(value)
		if !ok {
			return &fault{what: k.isNot(value), remedy: "write a size, as in 64KiB, 8MiB or 1GiB" + k.span()}
		}
		if !k.within(n) {
			return k.outside(value)
		}
		*into = n
	case *time.Duration:
		d, err := time.ParseDuration(value)
		if err != nil {
			remedy := "write a duration, as in 250ms, 5s or 1m"
			if _, err := strconv.ParseFloat(value, 64); err == nil {
				remedy = "add the unit, as in " + value + "ms or " + value + "s"
			}
			return &fault{what: k.isNot(value), remedy: remedy + k.span()}
		}
		if !k.within(int64(d)) {
			return k.outside(value)
		}
		*into = d
	case *tiers.Tier:
		var name string
		if f := k.assignText(&name, value); f != nil {
			return f
		}
		*into = tiers.LowLatency
		if name == tiers.Diskless.String() {
			*into = tiers.Diskless
		}
	case *PortRange:
		return assignPorts(into, value)
	case *NodeIDs:
		return assignNodeIDs(into, value)
	default:
		panic(fmt.Sprintf("config: %s has a field of a type that nothing reads: %T", k.path, into))
	}
	return nil
}

func (k key) assignText(into *string, value string) *fault {
	if value == "" {
		return &fault{what: k.leaf() + " is empty", remedy: "write a value, or leave the key out"}
	}
	if k.kind == kindAddress {
		if f := checkAddress(value); f != nil {
			return f
		}
	}
	if why, ok := k.refusedValues[value]; ok {
		return &fault{
			what:   fmt.Sprintf("%s %s is not supported: %s", k.leaf(), value, why),
			remedy: "use one of " + strings.Join(k.oneOf, ", "),
		}
	}
	if len(k.oneOf) > 0 && !slices.Contains(k.oneOf, value) {
		return &fault{
			what:   fmt.Sprintf("unknown %s %q", k.leaf(), clip(value)),
			remedy: meant(value, k.oneOf) + "it is one of " + strings.Join(k.oneOf, ", "),
		}
	}
	*into = value
	return nil
}

func (k key) isNot(value string) string {
	return fmt.Sprintf("%s takes %s, not %q", k.leaf(), k.kind.phrase(), clip(value))
}

// clip keeps a message readable whatever the file holds.
func clip(value string) string {
	if r := []rune(value); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return value
}

func (k key) span() string {
	if k.from == "" {
		return ""
	}
	return fmt.Sprintf("; from %s to %s", k.from, k.to)
}

func (k key) outside(value string) *fault {
	return &fault{
		what:   fmt.Sprintf("%s is out of range: %s", k.leaf(), value),
		remedy: fmt.Sprintf("it may go from %s to %s", k.from, k.to),
	}
}

// within holds a value against the key's range, which is written as the file
// writes values.
func (k key) within(n int64) bool {
	bound := func(s string) int64 {
		switch k.kind {
		case kindSize:
			n, _ := parseSize(s)
			return n
		case kindDuration:
			d, _ := time.ParseDuration(s)
			return int64(d)
		}
		n, _ := strconv.ParseInt(s, 10, 64)
		return n
	}
	return k.from == "" || n >= bound(k.from) && n <= bound(k.to)
}

// parseSize reads bytes: 512, 64KB (64,000), 64KiB (65,536), 1.5GiB.
func parseSize(s string) (int64, bool) {
	if !regexp.MustCompile(`^[0-9]+(\.[0-9]+)? ?([kKMGTP]i?)?B?$`).MatchString(s) {
		return 0, false
	}
	n, err := humanize.ParseBytes(s)
	return int64(min(n, math.MaxInt64)), err == nil
}

const portRemedy = "a port is a number from 1 to 65535"

func checkAddress(value string) *fault {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return &fault{what: fmt.Sprintf("%q is no address", clip(value)), remedy: "write host:port, as in 127.0.0.1:9092 or [::1]:9092"}
	}
	if _, ok := parsePort(port); !ok {
		return &fault{offset: len(value) - len(port), what: fmt.Sprintf("%q is no port", clip(port)), remedy: portRemedy}
	}
	return checkHost(host)
}

func checkHost(host string) *fault {
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return &fault{what: fmt.Sprintf("%q is no IPv6 address", clip(host)), remedy: "write it as in [2001:db8::1]:9092"}
		}
		return nil
	}
	if at := strings.IndexFunc(host, func(r rune) bool {
		return r > 127 || !(r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}); at >= 0 {
		return &fault{offset: at, what: fmt.Sprintf("%q is no host name", clip(host)), remedy: "write a name or an IP address, without scheme or path"}
	}
	return nil
}

func parsePort(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && n > 0
}

func assignPorts(into *PortRange, value string) *fault {
	colon := strings.LastIndexByte(value, ':')
	first, last, isRange := strings.Cut(value[colon+1:], "-")
	if colon < 0 || !isRange {
		return &fault{what: fmt.Sprintf("%q is no range of ports", clip(value)), remedy: "write host:first-last, as in 0.0.0.0:19100-19199"}
	}
	if f := checkAddress(value[:colon+1] + first); f != nil {
		return f
	}
	host, _, _ := net.SplitHostPort(value[:colon+1] + first)
	from, _ := parsePort(first)
	to, ok := parsePort(last)
	if !ok {
		return &fault{offset: len(value) - len(last), what: fmt.Sprintf("%q is no port", clip(last)), remedy: portRemedy}
	}
	if to < from {
		return &fault{offset: colon + 1, what: fmt.Sprintf("the range of ports is backwards: %d-%d", from, to), remedy: fmt.Sprintf("write %s%d-%d", value[:colon+1], to, from)}
	}
	if to == from {
		return &fault{offset: colon + 1, what: "one port is not enough for any broker", remedy: "every broker needs two ports: one for each tier"}
	}
	*into = PortRange{Host: host, First: from, Last: to}
	return nil
}

func assignNodeIDs(into *NodeIDs, value string) *fault {
	var all NodeIDs
	at := 0
	for part := range strings.SplitSeq(value, ",") {
		offset := at + len(part) - len(strings.TrimLeft(part, " "))
		at += len(part) + 1
		part = strings.TrimSpace(part)
		r, f := parseNodeIDRange(part)
		if f != nil {
			f.offset += offset
			return f
		}
		for _, other := range all {
			if r.First <= other.Last && other.First <= r.Last {
				return &fault{offset: offset, what: fmt.Sprintf("node ids overlap: %s and %s", NodeIDs{other}, NodeIDs{r}), remedy: "name each id once: its place in the list decides its ports"}
			}
		}
		all = append(all, r)
	}
	*into = all
	return nil
}

func parseNodeIDRange(s string) (NodeIDRange, *fault) {
	if strings.HasPrefix(s, "-") {
		return NodeIDRange{}, &fault{what: fmt.Sprintf("a node id is never negative: %s", clip(s)), remedy: "write ids from 0 on, as in 0-31,1001-1016"}
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	var ends [2]int32
	offset := 0
	for i, end := range []string{first, last} {
		n, err := strconv.ParseUint(end, 10, 63)
		if err != nil {
			return NodeIDRange{}, &fault{offset: offset, what: fmt.Sprintf("%q is no node id", clip(end)), remedy: "write ids and ranges of ids, as in 0-31,1001-1016"}
		}
		if n >= MaxNodeID {
			return NodeIDRange{}, &fault{offset: offset, what: fmt.Sprintf("node id %d is too large", n), remedy: fmt.Sprintf("ids go up to %d: above them are the diskless brokers' own", MaxNodeID-1)}
		}
		ends[i] = int32(n)
		if isRange {
			offset = len(first) + 1
		}
	}
	if ends[1] < ends[0] {
		return NodeIDRange{}, &fault{what: fmt.Sprintf("the range of node ids is backwards: %s", s), remedy: fmt.Sprintf("write %d-%d", ends[1], ends[0])}
	}
	return NodeIDRange{ends[0], ends[1]}, nil
}
