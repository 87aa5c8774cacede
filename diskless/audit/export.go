package audit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// Manifest says what an export is, and has the hash of each of its files. The
// JSON names are the format.
type Manifest struct {
	Format     int         `json:"format"` // 1
	ClusterID  string      `json:"cluster_id"`
	Topic      string      `json:"topic"`
	Exported   time.Time   `json:"exported"`
	Partitions []Partition `json:"partitions"`
}

// Partition is what an export has of one chain.
type Partition struct {
	TopicID   string `json:"topic_id"`
	Partition int32  `json:"partition"`
	Range     Range  `json:"range"`
	Records   int64  `json:"records"`
	File      File   `json:"file"` // the records, a line of JSON each
	// Objects are of the chain, one behind the other: those that hold the records,
	// and those behind them that say what became of their transactions.
	Objects []File `json:"objects"`
	First   int64  `json:"first_number"` // of the first of Objects
	Head    Anchor `json:"head"`         // the chain's end when this was exported
}

// File is a file of an export.
type File struct {
	Name   string `json:"name"` // below the export's folder
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

const (
	manifestFormat = 1
	// ManifestName is the file that says what an export is.
	ManifestName = "manifest.json"
)

// ErrExport is an export that cannot be made.
var ErrExport = errors.New("this cannot be exported")

// Exporter writes exports.
type Exporter struct {
	*Verifier
	Dir string // made when it is not there; it must be empty
}

// Prepare makes the folder.
func (x *Exporter) Prepare() error {
	if err := os.MkdirAll(x.Dir, 0o755); err != nil {
		return err
	}
	there, err := os.ReadDir(x.Dir)
	if err == nil && len(there) > 0 {
		err = fmt.Errorf("%w: %s is not empty", ErrExport, x.Dir)
	}
	return err
}

// Chain exports a range of a chain. A finding in what the range needs makes it an
// error: a proof of something else is none. nil without an error: the range holds
// nothing.
func (x *Exporter) Chain(ctx context.Context, c Chain, r Range) (*Partition, *Report, error) {
	// First what has to be in it: the chain is read once to its end, whose hash is
	// what others can hold this against.
	out := newOutcomes()
	first, last := int64(-1), int64(-1)
	v := *x.Verifier
	v.Each = func(_ context.Context, h Header, batches []byte) error {
		if r.touches(h, batches) {
			if first < 0 {
				first = h.Number
			}
			last = h.Number
		}
		if first < 0 {
			return nil
		}
		at, waiting := h.First, len(out.open) > 0
		err := each(batches, func(b wire.Batch) error {
			from, to := offsets(b, at)
			at = to + 1
			out.note(b, to >= r.FromOffset && (r.ToOffset < 0 || from < r.ToOffset))
			return nil
		})
		if waiting && last != h.Number {
			last = h.Number
		}
		return err
	}
	report, err := v.Chain(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	if len(report.Findings) > 0 {
		return nil, report, fmt.Errorf("%w: the chain %v is not sound: see `sluice audit verify`", ErrExport, c)
	}
	if first < 0 {
		return nil, report, nil
	}
	p := &Partition{TopicID: TopicIDText(c.TopicID), Partition: c.Partition, Range: r, First: first, Head: *report.Head}
	if err := os.MkdirAll(filepath.Join(x.Dir, "objects"), 0o755); err != nil {
		return nil, report, err
	}
	// A class that was given another store has a chain in each, of the same name.
	name := fmt.Sprintf("%s-%d", p.TopicID, p.Partition)
	err = os.Mkdir(filepath.Join(x.Dir, "objects", name), 0o755)
	for n := 2; errors.Is(err, fs.ErrExist); n++ {
		name = fmt.Sprintf("%s-%d.%d", p.TopicID, p.Partition, n)
		err = os.Mkdir(filepath.Join(x.Dir, "objects", name), 0o755)
	}
	if err != nil {
		return nil, report, err
	}
	records, err := newFile(x.Dir, "records-"+name+".jsonl")
	if err != nil {
		return nil, report, err
	}
	defer records.file.Close()
	w := newWalker(c, x.ClusterID, x.Now)
	w.inside = true
	entries, err := x.entries(ctx, c)
	if err != nil {
		return nil, report, err
	}
	for _, e := range entries {
		if e.number < first || e.number > last {
			continue
		}
		object, err := x.read(ctx, w, e)
		if err != nil {
			return nil, report, err
		}
		h, batches, ok := w.step(e.number, e.key, object)
		if !ok || len(w.r.Findings) > 0 {
			return nil, w.r, fmt.Errorf("%w: %s has changed meanwhile", ErrExport, e.key)
		}
		f, err := newFile(x.Dir, fmt.Sprintf("objects/%s/%0*d", name, digits, e.number))
		if err != nil {
			return nil, report, err
		}
		_, err = f.Write(object)
		done, closeErr := f.end()
		if err := errors.Join(err, closeErr); err != nil {
			return nil, report, err
		}
		p.Objects = append(p.Objects, done)
		n, err := writeRecords(records, h, batches, r, out)
		if err != nil {
			return nil, report, err
		}
		p.Records += n
	}
	p.File, err = records.end()
	return p, report, err
}

// Finish writes the manifest and returns its hash.
func (x *Exporter) Finish(m Manifest) (string, error) {
	m.Format = manifestFormat
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", err
	}
	f, err := newFile(x.Dir, ManifestName)
	if err != nil {
		return "", err
	}
	_, err = f.Write(append(body, '\n'))
	done, closeErr := f.end()
	return done.SHA256, errors.Join(err, closeErr)
}

// hashed is a file that is written, and hashed on the way.
type hashed struct {
	name string
	file *os.File
	buf  *bufio.Writer
	sum  interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func newFile(dir, name string) (*hashed, error) {
	file, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(name)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &hashed{name: name, file: file, buf: bufio.NewWriterSize(file, 256<<10), sum: sha256.New()}, nil
}

func (h *hashed) Write(b []byte) (int, error) {
	_, _ = h.sum.Write(b)
	h.n += int64(len(b))
	return h.buf.Write(b)
}

func (h *hashed) end() (File, error) {
	err := errors.Join(h.buf.Flush(), h.file.Sync(), h.file.Close())
	return File{h.name, hex.EncodeToString(h.sum.Sum(nil)), h.n}, err
}

// VerifyExport proves, without a store or Kafka, that an export's files are what
// its manifest says, that its objects are a part of a chain without a break, and
// that its records are exactly those of the objects. It returns the manifest's
// hash.
func VerifyExport(dir string, now time.Time) (reports []*Report, manifest string, err error) {
	body, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		return nil, "", err
	}
	manifest = Hash(body)
	var m Manifest
	if err := json.Unmarshal(body, &m); err != nil || m.Format != manifestFormat {
		return nil, manifest, fmt.Errorf("%s is no manifest of format %d: %w", filepath.Join(dir, ManifestName), manifestFormat, err)
	}
	named := map[string]bool{ManifestName: true}
	for _, p := range m.Partitions {
		named[p.File.Name] = true
		for _, o := range p.Objects {
			named[o.Name] = true
		}
		report, err := verifyPartition(dir, m, p, now)
		if err != nil {
			return nil, manifest, err
		}
		reports = append(reports, report)
	}
	extra := &Report{Topic: m.Topic, Partition: -1, First: -1}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err == nil && !named[filepath.ToSlash(rel)] {
			extra.find(filepath.ToSlash(rel), -1, "the manifest does not name this file")
		}
		return err
	})
	if len(extra.Findings) > 0 {
		reports = append(reports, extra)
	}
	return reports, manifest, err
}

func verifyPartition(dir string, m Manifest, p Partition, now time.Time) (*Report, error) {
	id, err := parseTopicID(p.TopicID)
	if err != nil {
		return nil, err
	}
	w := newWalker(Chain{id, p.Partition}, m.ClusterID, now)
	w.inside = true
	read := func(f File) []byte {
		if !filepath.IsLocal(filepath.FromSlash(f.Name)) {
			w.r.find(f.Name, -1, "the manifest names a file outside of the export")
			return nil
		}
		body, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.Name)))
		if err != nil {
			w.r.find(f.Name, w.next, "it cannot be read: %v", err)
			return nil
		}
		if Hash(body) != f.SHA256 {
			w.r.find(f.Name, w.next, "its SHA-256 is %s, the manifest says %s", Hash(body), f.SHA256)
		}
		return body
	}
	// Twice through the objects: what became of a transaction is told behind its
	// records.
	out := newOutcomes()
	for i, f := range p.Objects {
		object := read(f)
		if object == nil {
			w.before(p.First+int64(i), f.Name)
			w.broken(p.First + int64(i))
			continue
		}
		if _, batches, ok := w.step(p.First+int64(i), f.Name, object); ok {
			_ = each(batches, func(b wire.Batch) error { out.note(b, false); return nil })
		}
	}
	if len(w.r.Findings) > 0 {
		return w.r, nil
	}
	if w.r.Topic != m.Topic {
		w.r.find(p.File.Name, -1, "the objects are of topic %s, the manifest says %s", w.r.Topic, m.Topic)
	}
	if last := p.First + int64(len(p.Objects)) - 1; last == p.Head.Number && w.hash != p.Head.SHA256 {
		w.r.find(ManifestName, -1, "the manifest names another end of the chain")
	}
	if !filepath.IsLocal(filepath.FromSlash(p.File.Name)) {
		w.r.find(p.File.Name, -1, "the manifest names a file outside of the export")
		return w.r, nil
	}
	written, err := os.Open(filepath.Join(dir, filepath.FromSlash(p.File.Name)))
	if err != nil {
		w.r.find(p.File.Name, -1, "it cannot be read: %v", err)
		return w.r, nil
	}
	defer written.Close()
	sum := sha256.New()
	same := &comparing{r: bufio.NewReaderSize(io.TeeReader(written, sum), 256<<10)}
	var records int64
	for _, f := range p.Objects {
		object, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.Name)))
		if err != nil {
			return nil, err
		}
		h, batches, err := parseHeader(object)
		if err != nil {
			return nil, err
		}
		n, err := writeRecords(same, h, batches, p.Range, out)
		records += n
		if errors.Is(err, errDiffers) {
			w.r.find(p.File.Name, h.First, "line %d is not what object %d holds", same.lines+1, h.Number)
			return w.r, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if _, err := same.r.ReadByte(); err == nil {
		w.r.find(p.File.Name, -1, "there are lines after the %d that the objects hold", records)
	} else if hash := hex.EncodeToString(sum.Sum(nil)); hash != p.File.SHA256 {
		w.r.find(p.File.Name, -1, "its SHA-256 is %s, the manifest says %s", hash, p.File.SHA256)
	}
	if records != p.Records {
		w.r.find(p.File.Name, -1, "the objects hold %d records of the range, the manifest says %d", records, p.Records)
	}
	return w.r, nil
}

var errDiffers = errors.New("it differs")

// comparing is a Writer that holds what is written against what is there.
type comparing struct {
	r     *bufio.Reader
	lines int64
	buf   []byte
}

func (c *comparing) Write(b []byte) (int, error) {
	c.buf = slices.Grow(c.buf[:0], len(b))[:len(b)]
	if _, err := io.ReadFull(c.r, c.buf); err != nil || !slices.Equal(c.buf, b) {
		return 0, errDiffers
	}
	c.lines++
	return len(b), nil
}

func parseTopicID(text string) (id [16]byte, err error) {
	c, _, ok := parseKey(fmt.Sprintf("%s%s/0/%0*d", Prefix, text, digits, 0))
	if !ok {
		return id, fmt.Errorf("%q is no topic id", text)
	}
	return c.TopicID, nil
}
