package benchmarks

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Generator is what the generator saw of itself in a run's measured time.
type Generator struct {
	CPUSeconds  float64  `json:"cpu_seconds"`            // of its process, with all that shares it
	CPUShare    float64  `json:"cpu_share"`              // of the cores that it may use
	MachineBusy *float64 `json:"machine_busy,omitempty"` // of all cores, whoever used them; Linux only
	HiccupP99   float64  `json:"hiccup_p99_ms"`          // how much longer than a millisecond a sleep of one took
	HiccupMax   float64  `json:"hiccup_max_ms"`
	Sends       int      `json:"sends"`
	LateSends   int      `json:"late_sends"`           // more than 2 ms after they were due, and not because the target held them up
	Bottleneck  string   `json:"bottleneck,omitempty"` // why the figures say more about the generator than about the target
}

// When the generator is in the way.
const (
	lateAfter    = 2 * time.Millisecond
	lateShare    = 0.01
	busyShare    = 0.85
	machineShare = 0.95
	hiccupLimit  = 5.0 // ms
)

func (g *Generator) judge() {
	var why []string
	if g.Sends > 0 && float64(g.LateSends) > lateShare*float64(g.Sends) {
		why = append(why, fmt.Sprintf("%.1f %% of the sends left late", 100*float64(g.LateSends)/float64(g.Sends)))
	}
	if g.CPUShare > busyShare {
		why = append(why, fmt.Sprintf("it used %.0f %% of its cores", 100*g.CPUShare))
	}
	if g.HiccupP99 > hiccupLimit {
		why = append(why, fmt.Sprintf("one in a hundred of its sleeps took %.0f ms too long", g.HiccupP99))
	}
	if g.MachineBusy != nil && *g.MachineBusy > machineShare {
		why = append(why, fmt.Sprintf("the machine's cores were %.0f %% busy", 100**g.MachineBusy))
	}
	g.Bottleneck = strings.Join(why, ", ")
}

// watchGenerator measures from one moment to another, or until ctx ends.
func watchGenerator(ctx context.Context, from, to time.Time) (g Generator) {
	sleepUntil(ctx, from)
	began := time.Now()
	cpu := ownCPU()
	busy, total, known := machineCPU()
	hiccups := hdrhistogram.New(1, time.Minute.Microseconds(), 2)
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(to) {
			break
		}
		time.Sleep(time.Millisecond)
		record(hiccups, time.Since(now)-time.Millisecond)
	}
	took := time.Since(began).Seconds()
	g.CPUSeconds = ownCPU() - cpu
	if took > 0 {
		g.CPUShare = g.CPUSeconds / took / float64(runtime.GOMAXPROCS(0))
	}
	if busy2, total2, ok := machineCPU(); ok && known && total2 > total {
		share := (busy2 - busy) / (total2 - total)
		g.MachineBusy = &share
	}
	g.HiccupP99 = millis(hiccups.ValueAtQuantile(99))
	g.HiccupMax = millis(hiccups.Max())
	return g
}

func sleepUntil(ctx context.Context, at time.Time) {
	wait := time.Until(at)
	if wait <= 0 {
		return
	}
	if wait < 20*time.Millisecond { // a timer of its own would cost more than a late end
		time.Sleep(wait)
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// machineCPU is in ticks since the start; false where there is no /proc/stat.
func machineCPU() (busy, total float64, ok bool) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, 0, false
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 9 || fields[0] != "cpu" {
		return 0, 0, false
	}
	const idle, ioWait, guests = 3, 4, 8 // guests' time is in user's already
	for i, field := range fields[1 : 1+guests] {
		v, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, 0, false
		}
		total += v
		if i != idle && i != ioWait {
			busy += v
		}
	}
	return busy, total, true
}

// Machine is where all of it ran, as far as it can be told.
type Machine struct {
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	Host   string `json:"host,omitempty"`
	CPU    string `json:"cpu,omitempty"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory_bytes,omitempty"`
	Go     string `json:"go"`
}

func thisMachine() Machine {
	m := Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version()}
	m.Host, _ = os.Hostname()
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(text)); len(f) > 1 && f[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			m.Memory = kib << 10
		}
	}
	return m
}
