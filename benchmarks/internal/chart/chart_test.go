package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// checkSVG fails unless the drawing is well-formed and has all of these texts.
func checkSVG(t *testing.T, svg []byte, texts ...string) {
	t.Helper()
	decoder := xml.NewDecoder(strings.NewReader(string(svg)))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	if strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
		t.Errorf("a length is no number:\n%s", svg)
	}
	last := -1
	for _, text := range texts {
		at := strings.Index(string(svg), ">"+text+"<")
		if at < last {
			t.Errorf("%q is missing, or before the one before it", text)
		}
		last = at
	}
}

func TestBarsAreSorted(t *testing.T) {
	bars := Bars{Title: "a < b", Bars: []Bar{
		{"slow", 30, "30 ns", Peer}, {"quick", 10, "10 ns", Ours}, {"medium & so", 20, "20 ns", Reference},
	}}
	checkSVG(t, bars.SVG(), "quick", "medium &amp; so", "slow")
	bars.HigherIsBetter = true
	checkSVG(t, bars.SVG(), "slow", "medium &amp; so", "quick")
}

func TestBarsFarBeyondTheOthersAreBroken(t *testing.T) {
	with := func(values ...float64) float64 {
		var bars []Bar
		for _, v := range values {
			bars = append(bars, Bar{Value: v})
		}
		bars[0].Tone = Ours
		return Bars{}.limit(bars)
	}
	for _, test := range []struct {
		name   string
		values []float64
		want   float64
	}{
		{"all alike", []float64{60, 20, 200, 100}, 200},
		{"a network among them", []float64{60, 20, 200, 40_000}, 200},
		{"far, but step by step", []float64{60, 300, 450, 600, 800}, 800},
		{"one", []float64{60}, 60},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := with(test.values...); got != test.want {
				t.Errorf("the limit is %v, want %v", got, test.want)
			}
		})
	}
	checkSVG(t, Bars{Bars: []Bar{{"quick", 10, "10", Ours}, {"slow", 4000, "4 000", Peer}}}.SVG(), "quick", "slow")
	checkSVG(t, Bars{Title: "nothing"}.SVG(), "nothing")
}

func TestLinesMayHaveHoles(t *testing.T) {
	nan := math.NaN()
	checkSVG(t, Lines{
		Title: "hits", X: []string{"1", "2", "4"},
		Lines: []Line{
			{"whole", []float64{1, 2, 3}, Ours},
			{"late", []float64{nan, 2, 3}, Peer},
			{"early", []float64{1, nan, nan}, Reference},
			{"none", []float64{nan, nan, nan}, Peer},
		},
	}.SVG(), "hits", "late", "early", "whole")
	checkSVG(t, Lines{Title: "nothing"}.SVG(), "nothing")
	checkSVG(t, Lines{Title: "one", X: []string{"1"}, Lines: []Line{{"a", []float64{5}, Peer}}}.SVG(), "one", "a")
}

func TestNamesOfLinesDoNotOverlap(t *testing.T) {
	var ends []*end
	for _, y := range []float64{100, 101, 102, 300, 299, 330, 330} {
		ends = append(ends, &end{labelY: y})
	}
	spread(ends, 0, 330)
	for i, a := range ends {
		if a.labelY > 330 || a.labelY < 0 {
			t.Errorf("a name is at %v", a.labelY)
		}
		for _, b := range ends[i+1:] {
			if math.Abs(a.labelY-b.labelY) < labelPitch-0.01 {
				t.Errorf("names are at %v and %v", a.labelY, b.labelY)
			}
		}
	}
}

func TestTicksAreRoundAndCoverAll(t *testing.T) {
	for _, test := range []struct{ low, high float64 }{{0, 7}, {0, 330}, {41.2, 88.8}, {0, 0.03}, {5, 5}} {
		at := ticks(test.low, test.high, 6)
		if at[0] > test.low || at[len(at)-1] < test.high || len(at) > 10 || len(at) < 2 {
			t.Errorf("%v to %v: %v", test.low, test.high, at)
		}
	}
}

func TestWrapKeepsLinesShort(t *testing.T) {
	lines := wrap(strings.Repeat("word ", 60), 13, 300)
	if len(lines) < 5 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		if breadth(line, 13) > 300 {
			t.Errorf("%q is too long", line)
		}
	}
}
