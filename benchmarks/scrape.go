package benchmarks

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ProxyUse is what a target's proxy spent, by its own /metrics, all replicas
// together. It covers whole runs, warm-up and backlog included.
type ProxyUse struct {
	CPUSeconds      float64 `json:"cpu_seconds,omitempty"`        // absent when it shares the generator's process
	CPUSecondsPerGB float64 `json:"cpu_seconds_per_gb,omitempty"` // GB of payload acknowledged and delivered
	PeakMemory      float64 `json:"peak_memory_bytes,omitempty"`  // resident; the largest seen, one look a second
	Puts            float64 `json:"puts"`
	Gets            float64 `json:"gets"`
	Lists           float64 `json:"lists"`
	Deletes         float64 `json:"deletes"`
	ObjectBytes     float64 `json:"object_bytes"` // put
	ReadBytes       float64 `json:"read_bytes"`   // got
}

func (u *ProxyUse) add(v ProxyUse) {
	u.CPUSeconds += v.CPUSeconds
	u.PeakMemory = max(u.PeakMemory, v.PeakMemory)
	u.Puts += v.Puts
	u.Gets += v.Gets
	u.Lists += v.Lists
	u.Deletes += v.Deletes
	u.ObjectBytes += v.ObjectBytes
	u.ReadBytes += v.ReadBytes
}

// meter reads the metrics of a target's replicas before, during and after.
type meter struct {
	target Target
	before ProxyUse

	mu   sync.Mutex
	peak float64
}

const scrapeTimeout = 5 * time.Second

// startMeter returns nil when the target has no metrics.
func startMeter(ctx context.Context, t Target) (*meter, error) {
	if len(t.Metrics) == 0 {
		return nil, nil
	}
	m := &meter{target: t}
	var err error
	m.before, err = m.read(ctx)
	return m, err
}

// follow looks at the memory once a second until ctx ends.
func (m *meter) follow(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = m.read(ctx) // a look that is missed is no loss; the last one is checked
		}
	}
}

func (m *meter) since(ctx context.Context) (*ProxyUse, error) {
	u, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	b := m.before
	u.CPUSeconds -= b.CPUSeconds
	u.Puts -= b.Puts
	u.Gets -= b.Gets
	u.Lists -= b.Lists
	u.Deletes -= b.Deletes
	u.ObjectBytes -= b.ObjectBytes
	u.ReadBytes -= b.ReadBytes
	m.mu.Lock()
	u.PeakMemory = m.peak
	m.mu.Unlock()
	if u.CPUSeconds < 0 || u.Puts < 0 {
		return nil, fmt.Errorf("%s: its counters went back: a replica was restarted", m.target.Name)
	}
	if m.target.InProcess {
		u.CPUSeconds, u.PeakMemory = 0, 0
	}
	return &u, nil
}

func (m *meter) read(ctx context.Context) (sum ProxyUse, err error) {
	resident := 0.0
	for _, url := range m.target.Metrics {
		s, err := scrape(ctx, url)
		if err != nil {
			return sum, fmt.Errorf("%s: %w", m.target.Name, err)
		}
		resident += s.sum("process_resident_memory_bytes", "")
		sum.add(ProxyUse{
			CPUSeconds:  s.sum("process_cpu_seconds_total", ""),
			Puts:        s.sum("sluice_objstore_requests_total", `op="put"`),
			Gets:        s.sum("sluice_objstore_requests_total", `op="get"`),
			Lists:       s.sum("sluice_objstore_requests_total", `op="list"`),
			Deletes:     s.sum("sluice_objstore_requests_total", `op="delete"`),
			ObjectBytes: s.sum("sluice_objstore_bytes_total", `op="put"`),
			ReadBytes:   s.sum("sluice_objstore_bytes_total", `op="get"`),
		})
	}
	m.mu.Lock()
	m.peak = max(m.peak, resident)
	m.mu.Unlock()
	return sum, nil
}

// samples are lines of Prometheus' text format.
type samples []struct {
	name, labels string
	value        float64
}

func (s samples) sum(name, label string) (v float64) {
	for _, x := range s {
		if x.name == name && strings.Contains(x.labels, label) {
			v += x.value
		}
	}
	return v
}

const maxScrape = 64 << 20

func scrape(ctx context.Context, url string) (samples, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	s, err := parseSamples(io.LimitReader(resp.Body, maxScrape))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return s, nil
}

func parseSamples(r io.Reader) (out samples, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, labels := line, ""
		rest := ""
		if open := strings.IndexByte(line, '{'); open >= 0 {
			end := strings.LastIndexByte(line, '}')
			if end < open {
				return nil, fmt.Errorf("not Prometheus' text format: %q", line)
			}
			name, labels, rest = line[:open], line[open+1:end], line[end+1:]
		} else {
			name, rest, _ = strings.Cut(line, " ")
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return nil, fmt.Errorf("not Prometheus' text format: %q", line)
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return nil, fmt.Errorf("not Prometheus' text format: %q", line)
		}
		out = append(out, struct {
			name, labels string
			value        float64
		}{name, labels, v})
	}
	return out, in.Err()
}
