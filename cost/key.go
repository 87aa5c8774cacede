package cost

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// kind says how a number is written.
type kind uint8

const (
	number   kind = iota
	count         // whole
	size          // bytes: 64KiB
	rate          // bytes a second: 100MiB
	duration      // seconds: 250ms, 6h, 7d
	share         // 0 to 1, written as 60%
	flag          // 0 or 1, written as false or true
)

var phrases = map[kind]string{
	number:   "a number",
	count:    "a whole number",
	size:     "a size, as in 64KiB or 8MiB",
	rate:     "bytes a second, as in 64KiB/s or 100MiB/s",
	duration: "a duration, as in 250ms, 6h or 7d",
	share:    "a share, as in 60%",
	flag:     "true or false",
}

// maxNumber keeps products of several numbers finite.
const maxNumber = 1 << 60

// parse reads a value; the error says what it should be.
func (k kind) parse(text string) (v float64, err error) {
	wrong := fmt.Errorf("takes %s, not %q", phrases[k], clip(text))
	switch k {
	case number, count:
		v, err = strconv.ParseFloat(text, 64)
		if k == count && v != math.Trunc(v) {
			return 0, wrong
		}
	case size, rate:
		text = strings.TrimSuffix(text, "/s")
		if !regexp.MustCompile(`^[0-9]+(\.[0-9]+)? ?([kKMGTP]i?)?B?$`).MatchString(text) {
			return 0, wrong
		}
		var n uint64
		n, err = humanize.ParseBytes(text)
		v = float64(n)
	case duration:
		if days, ok := strings.CutSuffix(text, "d"); ok {
			v, err = strconv.ParseFloat(days, 64)
			v *= 24 * 3600
			break
		}
		var d time.Duration
		d, err = time.ParseDuration(text)
		v = d.Seconds()
	case share:
		of := 1.0
		if percent, ok := strings.CutSuffix(text, "%"); ok {
			text, of = percent, 100
		}
		v, err = strconv.ParseFloat(strings.TrimSpace(text), 64)
		v /= of
		if v > 1 {
			return 0, fmt.Errorf("takes a share of up to 100%%, not %q", clip(text))
		}
	case flag:
		var is bool
		is, err = strconv.ParseBool(text)
		if is {
			v = 1
		}
	}
	if err != nil || math.IsNaN(v) {
		return 0, wrong
	}
	if v < 0 || v > maxNumber {
		return 0, fmt.Errorf("takes %s from 0 to 2^60, not %q", phrases[k], clip(text))
	}
	return v, nil
}

// format writes a value so that parse reads it.
func (k kind) format(v float64) string {
	switch k {
	case rate:
		return size.format(v) + "/s"
	case size:
		for i, unit := range []string{"PiB", "TiB", "GiB", "MiB", "KiB"} {
			one := math.Exp2(float64(50 - 10*i))
			if text := trim(v / one); v >= one {
				if back, err := strconv.ParseFloat(text, 64); err == nil && back*one == v {
					return text + unit
				}
			}
		}
		return trim(v) + "B"
	case duration:
		if v >= 24*3600 && math.Mod(v, 3600) == 0 {
			return trim(v/24/3600) + "d"
		}
		text := time.Duration(v * float64(time.Second)).Round(time.Microsecond).String()
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		return text
	case share:
		return trim(v*100) + "%"
	case flag:
		return strconv.FormatBool(v != 0)
	}
	return trim(v)
}

// trim writes a number with at most three decimals when it is large enough.
func trim(v float64) string {
	if v >= 0.01 || v == 0 {
		v = math.Round(v*1000) / 1000
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

func clip(text string) string {
	if r := []rune(text); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return text
}

// Key is one number of the model: of the workload, or an assumption.
type Key struct {
	Name     string // as in the file, with underscores
	Workload bool   // what is to be priced; else what is supposed about everything else
	Doc      string
	kind     kind
	min      float64
	field    func(*Assumptions) *float64
}

// Get is the value as a person writes it.
func (k Key) Get(a Assumptions) string { return k.kind.format(*k.field(&a)) }

// Set reads what a person has written.
func (k Key) Set(a *Assumptions, text string) error {
	v, err := k.kind.parse(strings.TrimSpace(text))
	if err != nil {
		return fmt.Errorf("%s %w", k.Name, err)
	}
	if v < k.min {
		return fmt.Errorf("%s has to be at least %s, not %q", k.Name, k.kind.format(k.min), clip(text))
	}
	*k.field(a) = v
	return nil
}

// Find returns the key of a name.
func Find(name string) (Key, error) {
	keys := Keys()
	if i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == name }); i >= 0 {
		return keys[i], nil
	}
	return Key{}, fmt.Errorf("there is no assumption %q; `sluice cost --print-assumptions` lists them", clip(name))
}

// Assign takes one key=value, as --assume does.
func (a *Assumptions) Assign(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("%q is no assumption: write key=value, as in disk_fill=70%%", clip(text))
	}
	if name = strings.TrimSpace(name); name == mixKey {
		mix, err := ParseMix(value)
		if err == nil {
			a.Mix = mix
		}
		return err
	}
	k, err := Find(name)
	if err != nil {
		return err
	}
	return k.Set(a, value)
}

// ParseMix reads telemetry=90%,control=10%: shares of the throughput by class.
func ParseMix(text string) (map[string]float64, error) {
	mix := map[string]float64{}
	for part := range strings.SplitSeq(text, ",") {
		class, value, ok := strings.Cut(part, "=")
		if class = strings.TrimSpace(class); !ok || class == "" {
			return nil, fmt.Errorf("%q is no mix: write the share of each class, as in telemetry=90%%,control=10%%", clip(text))
		}
		if _, twice := mix[class]; twice {
			return nil, fmt.Errorf("class %s is twice in the mix", class)
		}
		v, err := share.parse(strings.TrimSpace(value))
		if err != nil {
			return nil, fmt.Errorf("mix: class %s %w", class, err)
		}
		mix[class] = v
	}
	return mix, checkMix(mix)
}

func checkMix(mix map[string]float64) error {
	sum := 0.0
	for _, v := range mix {
		sum += v
	}
	if math.Abs(sum-1) > 1e-6 {
		return fmt.Errorf("the mix adds up to %s, not to 100%%", share.format(sum))
	}
	return nil
}

// FormatMix is what ParseMix reads.
func FormatMix(mix map[string]float64) string {
	var parts []string
	for _, class := range sorted(mix) {
		parts = append(parts, class+"="+share.format(mix[class]))
	}
	return strings.Join(parts, ",")
}

var errEmpty = errors.New("the file is empty")
