// Package result holds what was measured, apart from how it is shown, so that a
// report can be made again from its file.
package result

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/stats"
)

// A File is one run of the measurements.
type File struct {
	Machine Machine           `json:"machine"`
	Modules map[string]string `json:"modules"` // the version of each module
	Rounds  int               `json:"rounds"`
	Quick   bool              `json:"quick,omitempty"`
	Began   time.Time         `json:"began"`
	Took    time.Duration     `json:"took_ns"`
	Notes   []Note            `json:"notes,omitempty"`
	Series  []*Series         `json:"series"`

	byKey map[Key]*Series
}

// Machine is where it was measured.
type Machine struct {
	CPU   string `json:"cpu"`
	Cores int    `json:"cores"` // GOMAXPROCS
	OS    string `json:"os"`
	Go    string `json:"go"`
	Redis string `json:"redis,omitempty"`
}

// A Note is something that a reader of a section should know.
type Note struct {
	Section string `json:"section"`
	Text    string `json:"text"`
}

// Key names a series.
type Key struct {
	Section string  `json:"section"`
	Case    string  `json:"case,omitempty"`
	Subject string  `json:"subject"`
	Metric  string  `json:"metric"`
	X       float64 `json:"x,omitempty"` // what a line of a chart runs over: goroutines, a capacity
}

// A Series is what one subject did, round by round. Samples of the same place in
// two series of a case are of the same round.
type Series struct {
	Key
	Samples []float64 `json:"samples"`
}

// Add appends samples to a series.
func (f *File) Add(key Key, samples ...float64) {
	f.index()
	s := f.byKey[key]
	if s == nil {
		s = &Series{Key: key}
		f.Series, f.byKey[key] = append(f.Series, s), s
	}
	for _, sample := range samples {
		s.Samples = append(s.Samples, rounded(sample))
	}
}

// rounded keeps five digits, since no more are ever true.
func rounded(x float64) float64 {
	short, err := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 5, 64), 64)
	if err != nil {
		return x
	}
	return short
}

// Note adds a note, once.
func (f *File) Note(section, format string, args ...any) {
	note := Note{section, fmt.Sprintf(format, args...)}
	if !slices.Contains(f.Notes, note) {
		f.Notes = append(f.Notes, note)
	}
}

// Samples returns the samples of a series, or nil.
func (f *File) Samples(key Key) []float64 {
	f.index()
	if s := f.byKey[key]; s != nil {
		return s.Samples
	}
	return nil
}

// Median returns the median of a series, and NaN if there is none.
func (f *File) Median(key Key) float64 { return stats.Median(f.Samples(key)) }

// Has reports whether anything of a section was measured.
func (f *File) Has(section string) bool {
	return slices.ContainsFunc(f.Series, func(s *Series) bool { return s.Section == section })
}

// HasSubject reports whether anything of a subject was measured.
func (f *File) HasSubject(name string) bool {
	return slices.ContainsFunc(f.Series, func(s *Series) bool { return s.Subject == name })
}

// Cases returns a section's cases for a metric, in the order of their measurement.
func (f *File) Cases(section, metric string) []string {
	return distinct(f, section, metric, func(s *Series) (string, bool) { return s.Case, true })
}

// Subjects returns the subjects of a case for a metric, in the order of their
// measurement.
func (f *File) Subjects(section, in, metric string) []string {
	return distinct(f, section, metric, func(s *Series) (string, bool) { return s.Subject, s.Case == in })
}

// Xs returns what the series of a case run over, ascending.
func (f *File) Xs(section, in, metric string) []float64 {
	xs := distinct(f, section, metric, func(s *Series) (float64, bool) { return s.X, s.Case == in })
	slices.Sort(xs)
	return xs
}

func distinct[T comparable](f *File, section, metric string, of func(*Series) (T, bool)) (found []T) {
	for _, s := range f.Series {
		if s.Section != section || s.Metric != metric {
			continue
		}
		if value, wanted := of(s); wanted && !slices.Contains(found, value) {
			found = append(found, value)
		}
	}
	return found
}

func (f *File) index() {
	if f.byKey != nil {
		return
	}
	f.byKey = make(map[Key]*Series, len(f.Series))
	for _, s := range f.Series {
		f.byKey[s.Key] = s
	}
}

// Write writes the file, a line for each series.
func (f *File) Write(path string) error {
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	text = bytes.ReplaceAll(text, []byte(`{"section":`), []byte("\n"+`{"section":`))
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Read reads what Write wrote.
func Read(path string) (*File, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &File{}
	if err := json.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}
