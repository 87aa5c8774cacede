package cost

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Prices is what is paid, and since when that is known. A GB is 2^30 bytes.
type Prices struct {
	AsOf     string `json:"as_of"` // a date
	Of       string `json:"of"`    // whose they are
	Currency string `json:"currency"`

	DiskGBMonth           float64 `json:"disk_gb_month"`
	DiskMiBPerSecondMonth float64 `json:"disk_mib_per_second_month"`
	CrossZoneOut          float64 `json:"cross_zone_out_gb"`
	CrossZoneIn           float64 `json:"cross_zone_in_gb"`
	ObjectGBMonth         float64 `json:"object_gb_month"`
	Put                   float64 `json:"object_put_million"`
	Get                   float64 `json:"object_get_million"`
	List                  float64 `json:"object_list_million"`
	UploadGB              float64 `json:"object_upload_gb"`
	RetrievalGB           float64 `json:"object_retrieval_gb"`
	BalancerGB            float64 `json:"balancer_gb"`
	BrokerHour            float64 `json:"broker_hour"`
	SluiceHour            float64 `json:"sluice_hour"`
}

//go:embed prices.yaml
var listPrices []byte

// ListPrices are the ones that come with sluice.
func ListPrices() Prices {
	p, err := ReadPrices("prices.yaml", listPrices)
	if err != nil {
		panic(err) // a test reads them
	}
	return p
}

// PricesFile is the text of ListPrices, for people to copy.
func PricesFile() string { return string(listPrices) }

func (p *Prices) numbers() map[string]*float64 {
	return map[string]*float64{
		"disk_gb_month": &p.DiskGBMonth, "disk_mib_per_second_month": &p.DiskMiBPerSecondMonth,
		"cross_zone_out_gb": &p.CrossZoneOut, "cross_zone_in_gb": &p.CrossZoneIn,
		"object_gb_month": &p.ObjectGBMonth, "object_put_million": &p.Put, "object_get_million": &p.Get, "object_list_million": &p.List,
		"object_upload_gb": &p.UploadGB, "object_retrieval_gb": &p.RetrievalGB,
		"balancer_gb": &p.BalancerGB, "broker_hour": &p.BrokerHour, "sluice_hour": &p.SluiceHour,
	}
}

// ReadPrices reads a whole file of prices; name is for errors.
func ReadPrices(name string, data []byte) (Prices, error) {
	var p Prices
	numbers := p.numbers()
	texts := map[string]*string{"as_of": &p.AsOf, "of": &p.Of, "currency": &p.Currency}
	missing := map[string]bool{}
	for key := range numbers {
		missing[key] = true
	}
	for key := range texts {
		missing[key] = true
	}
	err := readFile(name, data, func(key string, value entry) error {
		if err := value.plain(key); err != nil {
			return err
		}
		delete(missing, key)
		if into, ok := texts[key]; ok {
			*into = value.text
			if _, err := time.Parse(time.DateOnly, value.text); key == "as_of" && err != nil {
				return fmt.Errorf("as_of takes a date, as in 2026-11-26, not %q", clip(value.text))
			}
			return nil
		}
		into, ok := numbers[key]
		if !ok {
			return fmt.Errorf("there is no price %q; `sluice cost --print-prices` lists them", clip(key))
		}
		v, err := number.parse(value.text)
		if err != nil {
			return fmt.Errorf("%s %w", key, err)
		}
		*into = v
		return nil
	})
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%s: %s missing; `sluice cost --print-prices` gives a whole file to change", name, strings.Join(sorted(missing), ", "))
	}
	return p, err
}

// entry is one value of a file.
type entry struct {
	text string
	node *yaml.Node
}

func (e entry) plain(key string) error {
	if e.node.Kind != yaml.ScalarNode {
		return fmt.Errorf("%s takes one value", clip(key))
	}
	return nil
}

// pairs are the keys and values of a mapping of plain values.
func (e entry) pairs() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if e.node.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(e.node.Content); i += 2 {
			if !yield(e.node.Content[i].Value, e.node.Content[i+1].Value) {
				return
			}
		}
	}
}

// readFile calls set for each key of a YAML mapping; the error names file and
// line of everything that it refuses.
func readFile(name string, data []byte, set func(key string, value entry) error) error {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", name, errEmpty)
	} else if err != nil {
		return fmt.Errorf("%s: this is not YAML: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: write key: value", name, root.Line)
	}
	var errs []error
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		err := set(key.Value, entry{text: value.Value, node: value})
		if seen[key.Value] {
			err = fmt.Errorf("%s is here a second time", clip(key.Value))
		}
		seen[key.Value] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", name, key.Line, err))
		}
	}
	return errors.Join(errs...)
}
