package result

import (
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

func TestFileSurvivesWriteAndRead(t *testing.T) {
	f := &File{Machine: Machine{CPU: "a CPU", Cores: 2}, Rounds: 3, Modules: map[string]string{"m": "v1"}}
	ns := func(subject string, x float64) Key {
		return Key{Section: "hits", Case: "int64", Subject: subject, Metric: "ns", X: x}
	}
	f.Add(ns("b", 2), 20, 21)
	f.Add(ns("b", 1), 10, 11, 12)
	f.Add(ns("a", 1), 5)
	f.Add(ns("b", 1), 13)
	f.Note("hits", "%d samples", 7)
	f.Note("hits", "%d samples", 7)

	path := filepath.Join(t.TempDir(), "results.json")
	if err := f.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Median(ns("b", 1)) != 11.5 || !math.IsNaN(got.Median(ns("c", 1))) {
		t.Errorf("medians %v and %v", got.Median(ns("b", 1)), got.Median(ns("c", 1)))
	}
	if s := got.Subjects("hits", "int64", "ns"); !slices.Equal(s, []string{"b", "a"}) {
		t.Errorf("subjects %v", s)
	}
	if xs := got.Xs("hits", "int64", "ns"); !slices.Equal(xs, []float64{1, 2}) {
		t.Errorf("xs %v", xs)
	}
	if c := got.Cases("hits", "ns"); !slices.Equal(c, []string{"int64"}) || !got.Has("hits") || got.Has("memory") {
		t.Errorf("cases %v", c)
	}
	if len(got.Notes) != 1 || !reflect.DeepEqual(got.Machine, f.Machine) {
		t.Errorf("notes %v, machine %v", got.Notes, got.Machine)
	}
}
