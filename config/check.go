package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// check looks at what no single key can be wrong about, and fills in what
// follows from other keys.
func (p *parser) check() {
	p.required()
	p.kafka()
	p.listen()
	p.portsApart()
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Stores)) {
		p.store(name)
	}
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Classes)) {
		p.class(name)
	}
	p.rules()
	p.compaction()
	p.memory()
	p.diskCache()
	p.usedClasses()
}

// problem reports at a path's value, or at the nearest thing around it that
// stands in the file.
func (p *parser) problem(path, what, remedy string) {
	for at := path; at != ""; {
		if found, ok := p.places[at]; ok {
			switch {
			case at != path && found.key != nil:
				p.report(found.key, what, remedy)
			default:
				p.report(found.value, what, remedy)
			}
			return
		}
		at = at[:max(0, strings.LastIndexAny(at, ".["))]
	}
	p.spots = append(p.spots, spot{1, 1, 1, what, remedy})
}

func (p *parser) required() {
	for _, k := range p.keys {
		if !k.required {
			continue
		}
		for _, path := range p.instances(k.path) {
			if _, ok := p.places[path]; !ok {
				p.problem(path, path+" is missing", "write it: it has no default")
			}
		}
	}
}

// instances are the full paths that a schema's path stands for in this file.
func (p *parser) instances(schemaPath string) []string {
	var out []string
	switch before, after, _ := strings.Cut(schemaPath, "*."); {
	case after != "":
		for path, at := range p.places {
			if name, ok := strings.CutPrefix(path, before); ok && !strings.Contains(name, ".") && !at.faulty {
				out = append(out, path+"."+after)
			}
		}
	case strings.Contains(schemaPath, "[]"):
		for i := 0; ; i++ {
			path := strings.Replace(schemaPath, "[]", fmt.Sprintf("[%d]", i), 1)
			at, ok := p.places[path[:strings.LastIndexByte(path, '.')]]
			if !ok {
				return out
			}
			if !at.faulty && !isNull(at.value) {
				out = append(out, path)
			}
		}
	default:
		out = append(out, schemaPath)
	}
	return out
}

func (p *parser) kafka() {
	k := &p.cfg.Kafka
	for i, a := range k.Bootstrap {
		path := fmt.Sprintf("kafka.bootstrap[%d]", i)
		host, _, _ := net.SplitHostPort(a)
		if f := checkAddress(a); f != nil {
			p.reportIn(p.places[path].value, f)
		} else if host == "" {
			p.problem(path, "the broker has no host", "write host:port, as in broker-1:9092")
		} else if a == p.cfg.Listen.Bootstrap {
			p.problem(path, "this is sluice's own address, listen.bootstrap", "write the address of the Kafka cluster that stands behind it")
		}
	}

	if !k.TLS.Enabled && !p.has("kafka.tls.enabled") {
		for _, name := range []string{"ca", "cert", "key", "server_name", "insecure_skip_verify"} {
			if p.has("kafka.tls." + name) {
				p.problem("kafka.tls."+name, "kafka.tls."+name+" has no effect: TLS is not enabled", "add enabled: true to kafka.tls, or enabled: false to say that this is meant")
				break
			}
		}
	}
	if pem, ok := p.file("kafka.tls.ca", &k.TLS.CA); ok && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		p.problem("kafka.tls.ca", "the file holds no certificate", "name a PEM file with the authorities' certificates")
	}
	p.keyPair("kafka.tls", &k.TLS.Cert, &k.TLS.Key)

	p.sasl()
}

func (p *parser) sasl() {
	s := &p.cfg.Kafka.SASL
	p.secret("kafka.sasl.password", &s.Password, &p.files.password)
	if s.Mechanism == "" {
		if p.has("kafka.sasl.mechanism") {
			return // reported already
		}
		for _, name := range []string{"username", "password", "password_file"} {
			if p.has("kafka.sasl." + name) {
				p.problem("kafka.sasl."+name, "kafka.sasl."+name+" has no effect without a mechanism", "add mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
				return
			}
		}
		return
	}
	if s.Username == "" && !p.has("kafka.sasl.username") {
		p.problem("kafka.sasl.username", "kafka.sasl has a mechanism and no username", "add username")
	}
	if !p.has("kafka.sasl.password") && !p.has("kafka.sasl.password_file") {
		p.problem("kafka.sasl.password", "kafka.sasl has a mechanism and no password", "add password or password_file")
	}
}

func (p *parser) listen() {
	l := &p.cfg.Listen
	if p.sound("listen.advertise") {
		switch f := checkHost(strings.Trim(l.Advertise, "[]")); {
		case isWildcard(l.Advertise):
			p.problem("listen.advertise", "no client can connect to "+l.Advertise, "write the host that clients reach sluice at")
		case f != nil:
			f.remedy = "write only a host, without scheme or port: the ports that clients are told are those that sluice listens at"
			p.reportIn(p.places["listen.advertise"].value, f)
		default:
			l.Advertise = strings.Trim(l.Advertise, "[]")
		}
	} else if !p.has("listen.advertise") && p.sound("listen.bootstrap") {
		l.Advertise, _, _ = net.SplitHostPort(l.Bootstrap)
		if isWildcard(l.Advertise) {
			p.problem("listen.advertise", "listen.advertise is missing, and listen.bootstrap names no host that clients could be told", "write the host that clients reach sluice at, the same for all replicas")
		}
	}

	if p.sound("listen.brokers") {
		room := l.Brokers.Len() / 2
		switch {
		case !p.has("listen.node_ids"):
			l.NodeIDs = NodeIDs{{0, int32(room - 1)}}
		case p.sound("listen.node_ids") && l.NodeIDs.Len() > room:
			p.problem("listen.node_ids", fmt.Sprintf("%d node ids need %d ports, listen.brokers has %d", l.NodeIDs.Len(), 2*l.NodeIDs.Len(), l.Brokers.Len()), fmt.Sprintf("name at most %d ids, or widen listen.brokers: every broker needs two ports", room))
		}
	}
	p.keyPair("listen.tls", &l.TLS.Cert, &l.TLS.Key)
}

// portsApart finds listeners that would want the same port.
func (p *parser) portsApart() {
	type listener struct {
		path string
		at   PortRange
	}
	var all []listener
	add := func(path, value string) {
		host, port, err := net.SplitHostPort(value)
		if n, ok := parsePort(port); err == nil && ok {
			all = append(all, listener{path, PortRange{host, n, n}})
		}
	}
	add("listen.bootstrap", p.cfg.Listen.Bootstrap)
	if b := p.cfg.Listen.Brokers; b.First > 0 {
		all = append(all, listener{"listen.brokers", b})
	}
	add("admin", p.cfg.Admin)
	// The one that stands later in the file is reported, a default never.
	slices.SortStableFunc(all, func(a, b listener) int { return p.lineOf(a.path) - p.lineOf(b.path) })
	for i, a := range all {
		for _, b := range all[:i] {
			if a.at.First <= b.at.Last && b.at.First <= a.at.Last && sameHost(a.at.Host, b.at.Host) {
				p.problem(a.path, fmt.Sprintf("%s collides with %s at %s", a.path, b.path, portsText(b.at)), "give each its own ports")
			}
		}
	}
}

func (p *parser) lineOf(path string) int {
	if at, ok := p.places[path]; ok {
		return at.value.Line
	}
	return 0
}

func portsText(r PortRange) string {
	if r.First == r.Last {
		return fmt.Sprintf("port %d", r.First)
	}
	return fmt.Sprintf("ports %d-%d", r.First, r.Last)
}

// sameHost reports whether listeners at both hosts may get in each other's way.
// Names are not looked up.
func sameHost(a, b string) bool {
	loopback := func(host string) bool {
		ip, err := netip.ParseAddr(host)
		return host == "localhost" || err == nil && ip.IsLoopback()
	}
	return strings.EqualFold(a, b) || isWildcard(a) || isWildcard(b) ||
		loopback(a) && loopback(b) && (a == "localhost" || b == "localhost")
}

func isWildcard(host string) bool {
	if host == "" || host == "*" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsUnspecified()
}

func (p *parser) store(name string) {
	path := "stores." + name
	s := p.cfg.Stores[name]
	if p.sound(path + ".url") {
		if f := s.locate(); f != nil {
			p.reportIn(p.places[path+".url"].value, f)
			p.fail(path + ".url")
		}
	}
	if s.Scheme == "file" {
		for _, k := range p.children("stores.*") {
			if k != "url" && k != "lock" && k != "lock_retention" && p.has(path+"."+k) {
				p.problem(path+"."+k, k+" has no effect for a file:// store", "remove it")
			}
		}
	}
	p.lock(path, s)
	if p.sound(path + ".endpoint") {
		u, err := url.Parse(s.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			p.problem(path+".endpoint", "endpoint is not the address of a service", "write http:// or https:// and host:port, without path or credentials, as in https://minio.example:9000")
		}
	}
	if !p.has(path + ".path_style") {
		s.PathStyle = s.Endpoint != ""
	}
	p.secret(path+".secret_key", &s.SecretKey, p.files.secretKey[name])
	hasSecret := p.has(path+".secret_key") || p.has(path+".secret_key_file")
	switch {
	case p.has(path+".access_key") && !hasSecret:
		p.problem(path+".access_key", "access_key is useless without secret_key", "add secret_key or secret_key_file, or remove both and use the usual AWS sources")
	case hasSecret && !p.has(path+".access_key"):
		p.problem(path+".secret_key", "secret_key is useless without access_key", "add access_key, or remove both and use the usual AWS sources")
	}
	p.cfg.Stores[name] = s
}

func (p *parser) lock(path string, s Store) {
	switch {
	case s.Locks() && s.Scheme == "file":
		p.problem(path+".lock", "a file:// store cannot lock objects", "use a bucket that was made with object lock, or write lock: none to say that audit objects are not protected by the store")
	case s.Locks() && !p.has(path+".lock_retention"):
		p.problem(path+".lock", path+" has a lock and no lock_retention", "add lock_retention: how long nobody may alter or delete an audit object, as in 8760h for a year; with compliance nobody can shorten it later")
	case !s.Locks() && p.has(path+".lock_retention") && (s.Lock != "" || !p.has(path+".lock")):
		p.problem(path+".lock_retention", "lock_retention has no effect without a lock", "add lock: governance or lock: compliance, or remove it")
	}
}

func (p *parser) diskCache() {
	c := &p.cfg.DiskCache
	switch {
	case p.has("disk_cache.bytes") && !p.has("disk_cache.path"):
		p.problem("disk_cache.bytes", "disk_cache.bytes has no effect without disk_cache.path", "add path: the folder on a local disk that the cache shall be in")
	case p.has("disk_cache.path") && !p.has("disk_cache.bytes"):
		p.problem("disk_cache.path", "disk_cache has no bytes", "add bytes: how much of the disk the cache may take, as in 100GiB")
	}
	if p.sound("disk_cache.path") && !filepath.IsAbs(c.Path) {
		c.Path = filepath.Join(p.dir, c.Path)
	}
}

// locate takes the url apart.
func (s *Store) locate() *fault {
	const remedy = "write s3://bucket/prefix or file:///folder"
	u, err := url.Parse(s.URL)
	switch {
	case err != nil:
		return &fault{what: "url is no URL", remedy: remedy}
	case u.User != nil:
		return &fault{what: "url holds credentials", remedy: "use access_key and secret_key, or the usual AWS sources: the url is logged"}
	case u.RawQuery != "" || u.Fragment != "":
		return &fault{what: "url has a query or a fragment", remedy: remedy + "; everything else is a key of its own"}
	case u.Scheme == "s3":
		if u.Host == "" {
			return &fault{what: "url names no bucket", remedy: "write s3://bucket/prefix"}
		}
		if !regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`).MatchString(u.Host) {
			return &fault{offset: len("s3://"), what: fmt.Sprintf("%q cannot be a bucket", clip(u.Host)), remedy: "a bucket has 3 to 63 of a-z, 0-9, '.' and '-'; a service's address belongs into endpoint"}
		}
		s.Scheme, s.Bucket, s.Prefix = u.Scheme, u.Host, strings.Trim(u.Path, "/")
	case u.Scheme == "file":
		if u.Host != "" {
			return &fault{offset: len("file://"), what: "the folder is not absolute", remedy: "write three slashes, as in file:///var/lib/sluice"}
		}
		if filepath.Clean("/"+u.Path) == "/" {
			return &fault{what: "url names no folder", remedy: "write file:///folder, as in file:///var/lib/sluice"}
		}
		s.Scheme, s.Dir = u.Scheme, filepath.Clean(u.Path)
	case u.Scheme == "":
		return &fault{what: "url has no scheme", remedy: remedy}
	default:
		return &fault{what: fmt.Sprintf("unknown scheme %s://", clip(u.Scheme)), remedy: remedy + "; other services are reached through their S3 interface, with endpoint"}
	}
	return nil
}

func (p *parser) class(name string) {
	path := "classes." + name
	c := p.cfg.Classes[name]
	if !p.has(path) {
		return
	}
	own := slices.IndexFunc(builtins(), func(b tiers.Class) bool { return b.Name == name })
	switch {
	case own >= 0 && c.Tier != builtins()[own].Tier && p.sound(path+".tier"):
		p.problem(path+".tier", fmt.Sprintf("the built-in class %s is always %s", name, builtins()[own].Tier), "its tier is what people know it by: declare a class of your own, under another name")
		return
	case own < 0 && !p.has(path+".tier"):
		p.problem(path+".tier", fmt.Sprintf("the class %s has no tier", name), meant(name, p.classNames(name))+"a class that is not built in says tier: low-latency or tier: diskless")
		return
	case own < 0 && !p.sound(path+".tier"):
		return
	}
	if c.Tier == tiers.LowLatency {
		for _, k := range []string{"store", "linger", "object_size", "readahead", "audit", "on_outage", "on_delete"} {
			if p.has(path + "." + k) {
				p.problem(path+"."+k, fmt.Sprintf("%s has no effect: the class %s is low-latency and uses no store", k, name), "remove it, or use a diskless class")
			}
		}
		p.cfg.Classes[name] = tiers.Class{Name: c.Name, Tier: c.Tier, Summary: c.Summary}
		return
	}
	if !c.Audit && p.has(path+".on_delete") {
		p.problem(path+".on_delete", fmt.Sprintf("on_delete has no effect: the class %s is no audit class", name), "add audit: true, or remove it")
	}
	if _, ok := p.cfg.Stores[c.Store]; !ok && p.sound(path+".store") {
		p.problem(path+".store", fmt.Sprintf("there is no store %q", clip(c.Store)), p.storeRemedy(c.Store))
		p.fail(path + ".store")
	}
}

func (p *parser) storeRemedy(name string) string {
	names := slices.Sorted(maps.Keys(p.cfg.Stores))
	return fmt.Sprintf("%sdeclare it, as in stores: { %s: { url: \"s3://bucket/prefix\" } }", meant(name, names), clip(name))
}

func (p *parser) rules() {
	total := 0
	good := true
	for i, rule := range p.cfg.Rules {
		for j, pattern := range rule.Patterns {
			total++
			path := fmt.Sprintf("topics[%d].match[%d]", i, j)
			var bad *router.PatternError
			if _, err := router.Compile(pattern); errors.As(err, &bad) {
				p.reportIn(p.places[path].value, &fault{offset: bad.Offset, what: fmt.Sprintf("bad pattern %q: %s", clip(pattern), bad.What), remedy: bad.Remedy})
				good = false
			}
		}
	}
	if total > maxPatterns {
		p.problem("topics", fmt.Sprintf("topics has %d patterns, more than %d", total, maxPatterns), "join some of them: globs and regular expressions cover many topics")
		return
	}
	if !good {
		return
	}
	for _, s := range router.Shadowed(p.cfg.Rules) {
		dead := p.cfg.Rules[s.Rule].Patterns[s.Pattern]
		by := p.cfg.Rules[s.ByRule]
		p.problem(fmt.Sprintf("topics[%d].match[%d]", s.Rule, s.Pattern),
			fmt.Sprintf("unreachable: every topic that %q matches is taken by %q on line %d, and the first match wins", dead, by.Patterns[s.ByPattern], p.lineOf(fmt.Sprintf("topics[%d].match[%d]", s.ByRule, s.ByPattern))),
			"move it above that line, or remove it")
	}
}

// usedClasses looks at what the rules and the default lead to.
func (p *parser) usedClasses() {
	missing := map[string]bool{}
	use := func(path, name string) {
		if name == "" {
			return // reported already
		}
		c, ok := p.cfg.Classes[name]
		if !ok {
			names := p.classNames("")
			p.problem(path, fmt.Sprintf("there is no class %q", clip(name)), fmt.Sprintf("%sthe classes are %s; declare others under classes:", meant(name, names), strings.Join(names, ", ")))
			return
		}
		if c.Tier != tiers.Diskless {
			return
		}
		if _, ok := p.cfg.Stores[c.Store]; !ok && !p.has("classes."+name+".store") && !missing[name] {
			missing[name] = true
			p.problem(path, fmt.Sprintf("the class %s is diskless and needs the store %q, which does not exist", name, c.Store), p.storeRemedy(c.Store))
		}
		if s, ok := p.cfg.Stores[c.Store]; ok && c.Audit && s.Lock == "" && !p.has("stores."+c.Store+".lock") && !missing[name] {
			missing[name] = true
			p.problem("stores."+c.Store, fmt.Sprintf("the class %s keeps audit objects in the store %s, which does not say whether it locks them", name, c.Store), "add lock: compliance or lock: governance, and lock_retention; or lock: none to say that the store does not protect them")
		}
		if c.ObjectSize > p.cfg.Limits.WriteBufferBytes && !missing[name] {
			missing[name] = true
			at := "limits.write_buffer_bytes"
			if !p.has(at) {
				at = "classes." + name + ".object_size"
			}
			p.problem(at, fmt.Sprintf("limits.write_buffer_bytes is less than one object of the class %s", name), "raise limits.write_buffer_bytes to some times its object_size, or lower that")
		}
	}
	use("default_class", p.cfg.DefaultClass)
	for i, rule := range p.cfg.Rules {
		use(fmt.Sprintf("topics[%d].class", i), rule.Class)
	}
}

// classNames are all classes but one.
func (p *parser) classNames(but string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Classes)) {
		if name != but {
			names = append(names, name)
		}
	}
	return names
}

// has reports whether a path stands in the file, right or wrong.
func (p *parser) has(path string) bool {
	_, ok := p.places[path]
	return ok
}

// maxNamedBytes bounds each file that the configuration names.
const maxNamedBytes = 1 << 20

// file reads a file that a key names, and reports one that cannot be read. A
// relative path is made one from the configuration's folder.
func (p *parser) file(path string, name *string) ([]byte, bool) {
	if !p.sound(path) {
		return nil, false
	}
	if !filepath.IsAbs(*name) {
		*name = filepath.Join(p.dir, *name)
	}
	data, err := readBounded(*name, maxNamedBytes)
	if err == nil {
		return data, true
	}
	what := "the file cannot be read: " + cause(err)
	if errors.Is(err, fs.ErrNotExist) {
		what = "there is no such file"
	}
	p.problem(path, what, "a path that does not start with / is seen from the folder of this configuration")
	p.fail(path)
	return nil, false
}

func (p *parser) keyPair(section string, cert, key *string) {
	certThere, keyThere := p.has(section+".cert"), p.has(section+".key")
	switch {
	case certThere && !keyThere:
		p.problem(section+".cert", section+".cert is useless without its key", "add key, the PEM file of the private key")
	case keyThere && !certThere:
		p.problem(section+".key", section+".key is useless without its certificate", "add cert, the PEM file of the certificate")
	}
	certPEM, certRead := p.file(section+".cert", cert)
	keyPEM, keyRead := p.file(section+".key", key)
	if certRead && keyRead {
		if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
			p.problem(section+".cert", "certificate and key cannot be used: "+clip(strings.TrimPrefix(err.Error(), "tls: ")), "name PEM files of one certificate chain and its private key")
		}
	}
}

// secret fills in a secret from its own key, from the environment (${NAME}) or
// from the file that path_file names.
func (p *parser) secret(path string, value, fromFile *string) {
	if p.has(path) && p.has(path+"_file") {
		p.problem(path+"_file", fmt.Sprintf("both %s and %s_file are given", path, path), "keep one of the two")
		return
	}
	if data, ok := p.file(path+"_file", fromFile); ok {
		if *value = strings.TrimRight(string(data), "\r\n"); *value == "" {
			p.problem(path+"_file", "the file is empty", "it holds the secret in one line, nothing else")
		}
		return
	}
	if !p.sound(path) {
		return
	}
	if m := regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$`).FindStringSubmatch(*value); m != nil {
		if *value = os.Getenv(m[1]); *value == "" {
			p.problem(path, "the environment has no "+m[1], "set it, or write the secret into a file that "+path+"_file names")
		}
	}
}
