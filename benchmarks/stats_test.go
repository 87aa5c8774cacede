package benchmarks

import (
	"math"
	"testing"
)

func TestMannWhitneyAgreesWithKnownValues(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b []float64
		want float64
	}{
		{"five against five, apart: 2 of 252", []float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}, 2.0 / 252},
		{"the other way round", []float64{6, 7, 8, 9, 10}, []float64{1, 2, 3, 4, 5}, 2.0 / 252},
		{"three against three can never be significant: 2 of 20", []float64{1, 2, 3}, []float64{4, 5, 6}, 0.1},
		{"four against four: 2 of 70", []float64{1, 2, 3, 4}, []float64{5, 6, 7, 8}, 2.0 / 70},
		{"the example of SciPy's mannwhitneyu, exact", []float64{19, 22, 16, 29, 24}, []float64{20, 11, 17, 12}, 1.0 / 9},
		{"the same sample", []float64{1, 2, 3, 4, 5}, []float64{1, 2, 3, 4, 5}, 1},
		{"all equal", []float64{7, 7, 7}, []float64{7, 7, 7}, 1},
		{"nothing", nil, []float64{1}, 1},
	} {
		if got := MannWhitney(tt.a, tt.b); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%s: p = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Large samples take the approximation; near the border both must agree.
func TestMannWhitneyOfLargeSamples(t *testing.T) {
	var a, b, far []float64
	for i := range 40 {
		a = append(a, float64(2*i))
		b = append(b, float64(2*i+1))
		far = append(far, float64(2*i+30))
	}
	if p := MannWhitney(a, b); p < 0.8 {
		t.Errorf("interleaved samples: p = %v", p)
	}
	// U = 40·40/2 − Σ…: counted by hand as pairs (x, y) with x < y, halves for ties.
	u := 0.0
	for _, x := range a {
		for _, y := range far {
			switch {
			case x < y:
				u++
			case x == y:
				u += 0.5
			}
		}
	}
	z := (math.Abs(u-800) - 0.5) / math.Sqrt(1600.0/12*(81-25*6/(80.0*79)))
	if p, want := MannWhitney(a, far), math.Erfc(z/math.Sqrt2); math.Abs(p-want) > 1e-9 {
		t.Errorf("shifted by 15: p = %v, want %v", p, want)
	}
}

func TestMedianAndSpread(t *testing.T) {
	s := spread([]float64{9, 1, 5, 7})
	if s.Median != 6 || s.Least != 1 || s.Most != 9 || s.Rounds[0] != 9 {
		t.Errorf("%+v", s)
	}
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("median %v", m)
	}
}
