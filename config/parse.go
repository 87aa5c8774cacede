package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/tiers"
)

// maxFileBytes bounds the file, and with it everything that is read from it.
const maxFileBytes = 1 << 20

// maxPatterns bounds all patterns of topics: together. A topic that is seen for
// the first time is held against every one.
const maxPatterns = 2000

// Load reads and checks a file, and the files that it names. The error is
// always Problems.
func Load(path string) (*Config, error) {
	data, err := readBounded(path, maxFileBytes)
	if err != nil {
		return nil, Problems{unreadable(path, err)}
	}
	return Parse(path, data)
}

// Parse checks the content of a file. Other files that it names are looked for
// in the folder of path. The error is always Problems.
func Parse(path string, data []byte) (*Config, error) {
	cfg := defaults()
	cfg.File = filepath.Base(path)
	p := &parser{
		source: newSource(path, bytes.TrimPrefix(data, []byte("\ufeff"))),
		dir:    filepath.Dir(path),
		keys:   schema(),
		places: map[string]place{},
		cfg:    cfg,
		files:  secretFiles{secretKey: map[string]*string{}},
	}
	if root := p.tree(data); root != nil {
		p.section(root, "", "", target{Config: p.cfg, files: &p.files})
		p.check()
	}
	if len(p.spots) > 0 {
		return nil, p.source.problems(p.spots)
	}
	return p.cfg, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, err
}

func unreadable(path string, err error) Problem {
	p := Problem{File: path, What: "the file cannot be read: " + cause(err), Remedy: "name a readable YAML file with -c"}
	if errors.Is(err, fs.ErrNotExist) {
		p.What = "there is no such file"
	}
	return p
}

// cause is an error of the file system without operation and path.
func cause(err error) string {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err.Error()
	}
	return err.Error()
}

type parser struct {
	source *source
	dir    string // of the file
	keys   []key
	spots  []spot
	places map[string]place // by full path, as in classes.telemetry.linger or topics[2].match[0]
	cfg    *Config
	files  secretFiles
}

// place is where something stands in the file.
type place struct {
	key, value *yaml.Node // key is nil for an element of a list
	faulty     bool       // reported already: what follows from it is not
}

// tree returns the file's outermost mapping, nil after a report.
func (p *parser) tree(data []byte) *yaml.Node {
	if at, what := unprintable(data); at >= 0 {
		line := 1 + bytes.Count(data[:at], []byte("\n"))
		column := 1 + utf8.RuneCount(data[bytes.LastIndexByte(data[:at], '\n')+1:at])
		p.spots = append(p.spots, spot{line, column, 1, what, "save the file as UTF-8 text"})
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := decoder.Decode(&doc)
	if err == nil {
		err = decoder.Decode(&next)
	}
	switch {
	case doc.Kind == 0 && errors.Is(err, io.EOF), err == io.EOF && doc.Content[0].Tag == "!!null":
		p.spots = append(p.spots, spot{1, 1, 1, "the file is empty", "a configuration needs at least kafka.bootstrap, listen.bootstrap and listen.brokers"})
		return nil
	case err == nil:
		p.report(next.Content[0], "a second document starts here", "one file holds one configuration: remove the --- and what follows it, or merge the two")
		return nil
	case !errors.Is(err, io.EOF):
		p.syntax(err)
		return nil
	}
	root := doc.Content[0]
	p.hideSecrets(root)
	if root.Kind != yaml.MappingNode {
		p.report(root, "the file holds "+kindName(root)+" where sections should be", "start with the section kafka:")
		return nil
	}
	return root
}

// unprintable finds what no text file holds, -1 when there is nothing such.
func unprintable(data []byte) (int, string) {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return i, "this is not UTF-8"
		case r < ' ' && !strings.ContainsRune("\t\r\n", r) || r == 0x7f:
			return i, "this is a control character"
		}
		i += n
	}
	return -1, ""
}

// syntax reports that the file is no YAML. The library says which line, in
// words only.
func (p *parser) syntax(err error) {
	what := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := regexp.MustCompile(`^line (\d+): (.*)`).FindStringSubmatch(what); m != nil {
		line, _ = strconv.Atoi(m[1])
		what = m[2]
		// For these it names the beginning of what is broken, and counts from 0.
		if regexp.MustCompile(`expected (key$|node content|'-'|',')`).MatchString(what) {
			line = p.breaksAt(line + 1)
		}
	} else if m := regexp.MustCompile(`^unknown anchor '(.*)' referenced`).FindStringSubmatch(what); m != nil {
		// The name is not repeated: it may be a password.
		what = "a value that starts with * is taken for an alias: quote it"
		line = 1 + slices.IndexFunc(p.source.lines, func(l string) bool { return strings.Contains(l, "*"+m[1]) })
	}
	line = min(max(line, 1), len(p.source.lines))
	at := spot{line: line, column: 1, what: "this is not YAML: " + clip(what), remedy: "look at this line and its neighbours: indentation, quotes, brackets, a missing colon"}
	text := p.source.lines[line-1]
	indent := len(text) - len(strings.TrimLeft(text, " \t"))
	at.column, at.width = indent+1, max(utf8.RuneCountInString(strings.TrimSpace(text)), 1)
	if tab := strings.IndexByte(text[:indent], '\t'); tab >= 0 {
		at.column, at.width = tab+1, 1
		at.remedy = "indent with spaces: YAML does not take tabs"
	}
	// Nothing is known of the file's structure, so what only looks like a
	// secret is hidden.
	for i, text := range p.source.lines {
		if m := regexp.MustCompile(`(?i)(pass|pwd|secret|cred|key|token)[^:]*:`).FindStringIndex(text); m != nil {
			p.source.hide(i+1, utf8.RuneCountInString(text[:m[1]])+1)
		}
	}
	p.spots = append(p.spots, at)
}

// breaksAt returns the line after the longest beginning of the file that is
// YAML, or its argument when that would be far from the end.
func (p *parser) breaksAt(line int) int {
	budget := 16 << 20 // bytes to parse
	for n := len(p.source.lines) - 1; n > 0 && budget > 0; n-- {
		beginning := strings.Join(p.source.lines[:n], "\n")
		budget -= len(beginning)
		var ignored yaml.Node
		if yaml.Unmarshal([]byte(beginning), &ignored) == nil {
			return n + 1
		}
	}
	return line
}

// hideSecrets keeps the values of secret keys, and of keys that may have been
// meant for one, out of excerpts. A value may go on over many lines.
func (p *parser) hideSecrets(root *yaml.Node) {
	var order []*yaml.Node
	hidden := map[*yaml.Node]bool{}
	var secrets []string
	for _, k := range p.keys {
		if k.kind == kindSecret {
			secrets = append(secrets, k.leaf())
		}
	}
	known := func(name string) bool {
		return slices.ContainsFunc(p.keys, func(k key) bool { return k.leaf() == name })
	}
	var walk func(n *yaml.Node, hide bool)
	walk = func(n *yaml.Node, hide bool) {
		order = append(order, n)
		hidden[n] = hide
		for i, c := range n.Content {
			secretValue := hide
			if n.Kind == yaml.MappingNode && i%2 == 1 {
				name := n.Content[i-1].Value
				secretValue = hide || slices.Contains(secrets, name) ||
					!known(name) && (closest(name, secrets) != "" || strings.Contains(strings.ToLower(name), "pass") || strings.Contains(strings.ToLower(name), "secret")) ||
					name == "url" && strings.Contains(c.Value, "@")
			}
			walk(c, secretValue)
		}
	}
	walk(root, false)
	for i, n := range order {
		if !hidden[n] {
			continue
		}
		p.source.hide(n.Line, n.Column)
		end := len(p.source.lines) + 1
		if i+1 < len(order) {
			next := order[i+1]
			end = next.Line
			// In a line of its own, or behind the secret's last line?
			if before := p.source.line(next.Line); strings.Trim(string(before[:min(next.Column-1, len(before))]), " -") != "" {
				end++
			}
		}
		for line := n.Line + 1; line < end; line++ {
			p.source.hide(line, 1)
		}
	}
}

// section reads a mapping whose keys the schema names.
func (p *parser) section(n *yaml.Node, schemaPath, path string, t target) {
	p.pairs(n, path, func(name string, at place, childPath string) {
		childSchema := join(schemaPath, name)
		switch {
		case strings.ContainsAny(name, ".*[]"): // the schema's own marks
			p.unknown(at.key, name, schemaPath)
		case p.isKey(childSchema):
			p.value(p.key(childSchema), at, childPath, t)
		case p.isSection(childSchema):
			p.section(at.value, childSchema, childPath, t)
		case p.isSection(childSchema + ".*"):
			p.named(at.value, childSchema, childPath, t)
		case p.isSection(childSchema + "[]"):
			p.list(at.value, childSchema, childPath, t)
		default:
			p.unknown(at.key, name, schemaPath)
		}
	})
}

// named reads a mapping whose keys are names that the user chose.
func (p *parser) named(n *yaml.Node, schemaPath, path string, t target) {
	p.pairs(n, path, func(name string, at place, childPath string) {
		if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`).MatchString(name) {
			p.report(at.key, fmt.Sprintf("%q cannot be a name", clip(name)), "up to 64 of a-z, 0-9, - and _, the first a letter or digit: the name is a label of metrics")
			p.fail(childPath)
			return
		}
		switch schemaPath {
		case "stores":
			store := Store{Name: name}
			t.store = &store
			t.files.secretKey[name] = new(string)
			p.section(at.value, "stores.*", childPath, t)
			p.cfg.Stores[name] = store
		case "classes":
			class, ok := p.cfg.Classes[name]
			if !ok {
				class = newClass(name)
			}
			t.class = &class
			p.section(at.value, "classes.*", childPath, t)
			p.cfg.Classes[name] = class
		}
	})
}

// list reads topics:, the one list of sections.
func (p *parser) list(n *yaml.Node, schemaPath, path string, t target) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		p.report(n, fmt.Sprintf("%s is a list, not %s", path, kindName(n)), `write one line for each rule, as in - { match: "payments*", class: control }`)
		return
	}
	for i, element := range n.Content {
		rule := router.Rule{Line: element.Line}
		t.rule = &rule
		elementPath := fmt.Sprintf("%s[%d]", path, i)
		p.places[elementPath] = place{value: element}
		if isNull(element) {
			p.report(element, "this rule is empty", `write match and class, as in { match: "payments*", class: control }`)
		}
		p.section(element, schemaPath+"[]", elementPath, t)
		// Appended whatever is wrong with it: its index is that of the file.
		p.cfg.Rules = append(p.cfg.Rules, rule)
	}
}

// pairs goes through a mapping; an absent value is an empty mapping.
func (p *parser) pairs(n *yaml.Node, path string, visit func(name string, at place, childPath string)) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.report(n, fmt.Sprintf("%s is a section of keys, not %s", path, kindName(n)), "write its keys below it, indented, or as { key: value }")
		p.fail(path)
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || isNull(k) {
			p.report(k, "a key is a plain word, not "+kindName(k), "write key: value")
			continue
		}
		if first, twice := lines[k.Value]; twice {
			p.report(k, fmt.Sprintf("doubled key %q: it stands on line %d already", clip(k.Value), first), "keep one of the two")
			continue
		}
		lines[k.Value] = k.Line
		childPath := join(path, k.Value)
		p.places[childPath] = place{key: k, value: v}
		visit(k.Value, p.places[childPath], childPath)
	}
}

// value reads what stands at a key of the schema.
func (p *parser) value(k key, at place, path string, t target) {
	if k.refused != "" {
		p.report(at.key, k.path+" is not supported: "+k.refused, "remove it; let clients log in with SASL, which is relayed to the broker (mTLS between sluice and the brokers is kafka.tls.cert and key)")
		p.fail(path)
		return
	}
	into := k.field(t)
	if many, ok := into.(*[]string); ok {
		p.valueList(k, at, path, many)
		return
	}
	if !p.isScalar(k, at.value) {
		p.fail(path)
		return
	}
	if f := k.assign(into, at.value.Value); f != nil {
		p.reportIn(at.value, f)
		p.fail(path)
	}
}

func (p *parser) valueList(k key, at place, path string, into *[]string) {
	elements := []*yaml.Node{at.value}
	if at.value.Kind == yaml.SequenceNode {
		elements = at.value.Content
		if len(elements) == 0 {
			p.report(at.value, k.leaf()+" is an empty list", "write at least one value")
			p.fail(path)
			return
		}
	}
	for _, element := range elements {
		if !p.isScalar(k, element) {
			p.fail(path)
			continue
		}
		p.places[fmt.Sprintf("%s[%d]", path, len(*into))] = place{value: element}
		*into = append(*into, element.Value)
	}
}

func (p *parser) isScalar(k key, n *yaml.Node) bool {
	switch {
	case isNull(n):
		p.report(n, k.leaf()+" has no value", "write one, or leave the key out")
	case n.Kind != yaml.ScalarNode:
		p.report(n, fmt.Sprintf("%s takes %s, not %s", k.leaf(), k.kind.phrase(), kindName(n)), "write one value")
	case k.kind == kindSecret && n.Value == "":
		p.report(n, k.leaf()+" is empty", "write a value, or leave the key out")
	default:
		return true
	}
	return false
}

func (p *parser) unknown(n *yaml.Node, name, schemaPath string) {
	what := fmt.Sprintf("unknown key %q", clip(name))
	if schemaPath != "" {
		what += " in " + shown(schemaPath)
	}
	for _, k := range p.keys {
		if k.leaf() == name && k.refused == "" {
			p.report(n, what, "this key belongs to "+shown(k.section()))
			return
		}
	}
	names := p.children(schemaPath)
	if best := closest(name, names); best != "" {
		p.report(n, what, fmt.Sprintf("did you mean %q?", best))
		return
	}
	p.report(n, what, "the keys here are "+strings.Join(names, ", "))
}

// shown is a path of the schema as people read it.
func shown(schemaPath string) string {
	s := strings.ReplaceAll(strings.ReplaceAll(schemaPath, ".*", ".<name>"), "[]", "")
	return cmp.Or(s, "the top level")
}

// children are the keys that may stand in a section.
func (p *parser) children(schemaPath string) []string {
	var out []string
	for _, k := range p.keys {
		rest := k.path
		if schemaPath != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(k.path, schemaPath+"."); !ok {
				continue
			}
		}
		rest, _, _ = strings.Cut(rest, ".")
		rest = strings.TrimSuffix(rest, "[]")
		if k.refused == "" && !slices.Contains(out, rest) {
			out = append(out, rest)
		}
	}
	return out
}

func (p *parser) isKey(path string) bool {
	return slices.ContainsFunc(p.keys, func(k key) bool { return k.path == path })
}

func (p *parser) key(path string) key {
	return p.keys[slices.IndexFunc(p.keys, func(k key) bool { return k.path == path })]
}

func (p *parser) isSection(path string) bool {
	return slices.ContainsFunc(p.keys, func(k key) bool {
		return strings.HasPrefix(k.path, path+".") && !strings.HasPrefix(k.path, path+".*")
	})
}

// fail notes that a path was reported.
func (p *parser) fail(path string) {
	at := p.places[path]
	at.faulty = true
	p.places[path] = at
}

// sound reports whether a path stands in the file and was not reported.
func (p *parser) sound(path string) bool {
	at, ok := p.places[path]
	return ok && !at.faulty
}

func (p *parser) report(n *yaml.Node, what, remedy string) {
	width := 1
	if n.Kind == yaml.ScalarNode {
		width = utf8.RuneCountInString(n.Value)
		if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
			width += 2
		}
		width = max(1, min(width, len(p.source.line(n.Line))-n.Column+1))
	}
	p.spots = append(p.spots, spot{n.Line, n.Column, width, what, remedy})
}

// reportIn reports a fault at its place inside a value, if the value stands in
// the file letter by letter.
func (p *parser) reportIn(n *yaml.Node, f *fault) {
	if f.offset > 0 {
		column := n.Column
		if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
			column++
		}
		line := p.source.line(n.Line)
		if column <= len(line) && strings.HasPrefix(string(line[column-1:]), n.Value) {
			column += utf8.RuneCountInString(n.Value[:f.offset])
			p.spots = append(p.spots, spot{n.Line, column, 1, f.what, f.remedy})
			return
		}
	}
	p.report(n, f.what, f.remedy)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias (write the value out)"
	}
	return "a single value"
}

// defaults is the configuration that the schema's defaults make.
func defaults() *Config {
	cfg := &Config{Stores: map[string]Store{}, Classes: map[string]tiers.Class{}}
	for _, c := range builtins() {
		cfg.Classes[c.Name] = c
	}
	fill(target{Config: cfg}, func(k key) bool { return !strings.ContainsAny(k.path, "*[") })
	return cfg
}

func newClass(name string) tiers.Class {
	c := tiers.Class{Name: name}
	fill(target{class: &c}, func(k key) bool { return k.section() == "classes.*" })
	return c
}

// fill sets the defaults of some keys.
func fill(t target, wanted func(key) bool) {
	for _, k := range schema() {
		if k.def == "" || !wanted(k) {
			continue
		}
		if f := k.assign(k.field(t), k.def); f != nil {
			panic(fmt.Sprintf("config: the schema's default of %s: %s", k.path, f.what))
		}
	}
}
