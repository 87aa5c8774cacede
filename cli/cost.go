package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/cost"
)

// maxCostFile bounds a file of prices or assumptions.
const maxCostFile = 1 << 20

// costFlags are the flags by which a model of costs is changed.
type costFlags struct {
	assumptions, prices string
	assume              []string
	workload            map[string]*string // by key
	mix                 string
}

func (f *costFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.assumptions, "assumptions", "", "file of assumptions; see sluice cost --print-assumptions")
	flags.StringVar(&f.prices, "prices", "", "file of prices; see sluice cost --print-prices")
	flags.StringArrayVar(&f.assume, "assume", nil, "one assumption, as in disk_fill=70%; may be repeated")
}

// registerWorkload adds a flag for each number of the workload.
func (f *costFlags) registerWorkload(flags *pflag.FlagSet) {
	defaults := cost.Defaults()
	flags.StringVar(&f.mix, "mix", "", "share of the throughput by class (default "+cost.FormatMix(defaults.Mix)+")")
	f.workload = make(map[string]*string)
	for _, k := range cost.Keys() {
		if k.Workload {
			f.workload[k.Name] = flags.String(strings.ReplaceAll(k.Name, "_", "-"), "", k.Doc+" (default "+k.Get(defaults)+")")
		}
	}
}

// model puts defaults, the file, and then the flags together.
func (f *costFlags) model() (cost.Model, error) {
	m := cost.Model{Assumptions: cost.Defaults(), Prices: cost.ListPrices(), Classes: config.Builtins()}
	if f.assumptions != "" {
		data, err := readCostFile(f.assumptions)
		if err != nil {
			return m, err
		}
		if err := m.Read(f.assumptions, data); err != nil {
			return m, err
		}
	}
	if f.prices != "" {
		data, err := readCostFile(f.prices)
		if err != nil {
			return m, err
		}
		if m.Prices, err = cost.ReadPrices(f.prices, data); err != nil {
			return m, err
		}
	}
	var errs []error
	for _, text := range f.assume {
		errs = append(errs, m.Assign(text))
	}
	for _, k := range cost.Keys() {
		if text := f.workload[k.Name]; text != nil && *text != "" {
			if err := k.Set(&m.Assumptions, *text); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", strings.ReplaceAll(k.Name, "_", "-"), err))
			}
		}
	}
	if f.mix != "" {
		mix, err := cost.ParseMix(f.mix)
		m.Mix = mix
		errs = append(errs, err)
	}
	return m, errors.Join(errs...)
}

func readCostFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxCostFile+1))
	if err == nil && len(data) > maxCostFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxCostFile)
	}
	return data, err
}

func newCost() *cobra.Command {
	var f costFlags
	var path string
	var asJSON, printAssumptions, printPrices bool
	cmd := &cobra.Command{
		Use:   "cost",
		Short: "Reckon what a workload costs with and without sluice",
		Long: `Reckons the monthly cost of a workload with plain Kafka, with consumers that
fetch in their zone (follower fetch, KIP-392), with tiered storage besides
(KIP-405), and with sluice in front of Kafka and topics in classes by --mix.

It is arithmetic over list prices and assumptions, not an invoice. All of them
are printed, and can be changed: by flags, by --assume, or by a file that
--print-assumptions or --print-prices gives you to begin with. -c takes linger
and object size of the classes from a configuration, and limits.puts_per_second.

sluice advise does the same for the topics that a cluster has.`,
		Example: `  sluice cost --throughput 100MiB --retention 7d --fan-out 3
  sluice cost --mix telemetry=80%,replay=15%,control=5% --compression 4
  sluice cost --print-assumptions > assumptions.yaml
  sluice cost --assumptions assumptions.yaml --assume disk_fill=70% --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.model()
			if err != nil {
				return err
			}
			if path != "" {
				cfg, err := config.Load(path)
				if err != nil {
					return err
				}
				m.Classes, m.EarlyPuts = cfg.Classes, float64(cfg.Limits.PutsPerSecond)
			}
			out := cmd.OutOrStdout()
			switch {
			case printAssumptions:
				_, err = fmt.Fprint(out, m.Print())
				return err
			case printPrices:
				_, err = fmt.Fprint(out, cost.PricesFile())
				return err
			}
			setups, err := m.Estimate()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(out, costReportOf(&m, setups))
			}
			return printCost(out, &m, setups)
		},
	}
	f.registerWorkload(cmd.Flags())
	f.register(cmd.Flags())
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file, to take classes from")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&printAssumptions, "print-assumptions", false, "print the workload and all assumptions as a file for --assumptions")
	cmd.Flags().BoolVar(&printPrices, "print-prices", false, "print the built-in prices as a file for --prices")
	cmd.MarkFlagsMutuallyExclusive("json", "print-assumptions", "print-prices")
	return cmd
}

// costReport is what `sluice cost --json` prints. The JSON names are stable.
type costReport struct {
	TiBPerMonth float64            `json:"tib_written_per_month"`
	Offloaded   float64            `json:"offloaded_share"` // of the bytes, to objects
	Setups      []costSetup        `json:"setups"`
	Mix         map[string]float64 `json:"mix"`
	Assumptions map[string]string  `json:"assumptions"` // the workload's too, as --assumptions reads them
	Prices      cost.Prices        `json:"prices"`
}

type costSetup struct {
	Setup  string     `json:"setup"` // kafka, follower_fetch, tiered_storage or sluice
	Name   string     `json:"name"`
	Month  float64    `json:"month"`
	PerTiB float64    `json:"per_tib_written"`
	Lines  []costLine `json:"lines"`
}

type costLine struct {
	Item     string  `json:"item"`
	Name     string  `json:"name"`
	Quantity float64 `json:"quantity"`
	Unit     string  `json:"unit"`
	Month    float64 `json:"month"`
}

func costReportOf(m *cost.Model, setups []cost.Setup) costReport {
	r := costReport{TiBPerMonth: m.TiB(), Offloaded: m.Offloaded(), Mix: m.Mix, Assumptions: map[string]string{}, Prices: m.Prices}
	for _, k := range cost.Keys() {
		r.Assumptions[k.Name] = k.Get(m.Assumptions)
	}
	for _, s := range setups {
		out := costSetup{Setup: s.Key, Name: s.Name, Month: s.Bill.Total(), PerTiB: s.Bill.Total() / m.TiB()}
		for _, i := range cost.Items() {
			out.Lines = append(out.Lines, costLine{i.Key(), i.Name(), s.Bill[i].Quantity, i.Unit(), s.Bill[i].Month})
		}
		r.Setups = append(r.Setups, out)
	}
	return r
}

// money is without cents from ten on; nothing is a dash.
func money(currency string, v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 0:
		return "-" + money(currency, -v)
	case v < 9.995:
		return fmt.Sprintf("%s%.2f", currency, v)
	}
	digits := fmt.Sprintf("%.0f", math.Round(v))
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return currency + digits
}

func printCost(out io.Writer, m *cost.Model, setups []cost.Setup) error {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	width := 0
	for _, i := range cost.Items() {
		width = max(width, len(i.Name()))
	}
	// Titles are all as wide, so that only cells are seen to be aligned right.
	row := func(title string, cell func(cost.Setup) string) {
		fmt.Fprintf(w, "%-*s\t", width, title)
		for _, s := range setups {
			fmt.Fprintf(w, "%s\t", cell(s))
		}
		fmt.Fprintln(w)
	}
	row("a month costs", func(s cost.Setup) string { return s.Name })
	for _, i := range cost.Items() {
		used := false
		for _, s := range setups {
			used = used || s.Bill[i].Month != 0
		}
		if used {
			row(i.Name(), func(s cost.Setup) string { return money(m.Prices.Currency, s.Bill[i].Month) })
		}
	}
	row("all", func(s cost.Setup) string { return money(m.Prices.Currency, s.Bill.Total()) })
	row("for each TiB written", func(s cost.Setup) string { return money(m.Prices.Currency, s.Bill.Total()/m.TiB()) })
	row("brokers, replicas of sluice", func(s cost.Setup) string {
		return fmt.Sprintf("%.0f, %.0f", s.Bill[cost.Brokers].Quantity, s.Bill[cost.Replicas].Quantity)
	})
	_ = w.Flush()
	for line := range strings.Lines(table.String()) {
		fmt.Fprint(out, strings.TrimPrefix(line, "  "))
	}
	fmt.Fprintf(out, "\nReckoned, not an invoice; prices of %s as of %s.\n", m.Prices.Of, m.Prices.AsOf)
	if off := m.Offloaded(); off == 0 {
		fmt.Fprintln(out, "No payload goes to objects: no class of the mix is diskless, or batches are too small for placeholders to pay.")
	} else {
		fmt.Fprintf(out, "%.0f %% of the bytes go to objects.\n", off*100)
	}
	fmt.Fprint(out, "\nAssumed (change any with --assume key=value, or see --print-assumptions; prices with --prices):\n")
	a := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(a, "  mix\t%s\tshare of the throughput by class\n", cost.FormatMix(m.Mix))
	for _, k := range cost.Keys() {
		fmt.Fprintf(a, "  %s\t%s\t%s\n", k.Name, k.Get(m.Assumptions), k.Doc)
	}
	return a.Flush()
}
