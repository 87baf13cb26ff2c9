// Package trace has orders of access for measuring hit ratios: generated ones,
// the same in every run, and recorded ones from files.
package trace

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Trace is an order in which keys are asked for.
type Trace struct {
	Name  string
	About string // where it comes from, in a few words
	Keys  []int64
}

// Unique returns how many keys there are.
func (t Trace) Unique() int {
	seen := make(map[int64]struct{})
	for _, key := range t.Keys {
		seen[key] = struct{}{}
	}
	return len(seen)
}

// ReadDir reads every trace NAME.gz of a folder, by name: one key number a line.
func ReadDir(dir string) ([]Trace, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.gz"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("no traces NAME.gz in %s", dir)
	}
	slices.Sort(paths)
	var traces []Trace
	for _, path := range paths {
		keys, err := read(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".gz")
		traces = append(traces, Trace{name, "recorded", keys})
	}
	return traces, nil
}

func read(path string) (keys []int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(unzipped)
	for lines.Scan() {
		key, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, cmp.Or(lines.Err(), unzipped.Close())
}
