package trace

import (
	"compress/gzip"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestGeneratedTracesAreTheSameInEveryRun(t *testing.T) {
	first, second := Generated(30_000), Generated(30_000)
	names := map[string]bool{}
	for i, trace := range first {
		if len(trace.Keys) != 30_000 || trace.Unique() < 1000 {
			t.Errorf("%s: %d accesses to %d keys", trace.Name, len(trace.Keys), trace.Unique())
		}
		if !slices.Equal(trace.Keys, second[i].Keys) {
			t.Errorf("%s differs", trace.Name)
		}
		names[trace.Name] = true
	}
	if len(names) != len(first) {
		t.Errorf("%d names for %d traces", len(names), len(first))
	}
}

func TestZipfFollowsItsSkew(t *testing.T) {
	z := NewZipf(rand.New(rand.NewPCG(1, 1)), 1000, 0.9)
	counts := make([]float64, 1000)
	for range 1_000_000 {
		counts[z.Next()]++
	}
	for _, rank := range []int{1, 9, 99} {
		want := counts[0] * math.Pow(float64(rank+1), -0.9)
		if got := counts[rank]; math.Abs(got-want) > want/10 {
			t.Errorf("rank %d was drawn %v times, want about %.0f", rank, got, want)
		}
	}
}

func TestScansAreNeverSeenAgain(t *testing.T) {
	counts := map[int64]int{}
	for _, key := range scans(60_000, 1000, 5000, 500) {
		counts[key]++
	}
	scanned := 0
	for key, n := range counts {
		if key >= 1000 {
			scanned++
			if n != 1 {
				t.Fatalf("key %d of a scan was asked for %d times", key, n)
			}
		}
	}
	if scanned < 4000 {
		t.Errorf("%d keys were scanned", scanned)
	}
}

func TestLoopComesAroundInOrder(t *testing.T) {
	next := int64(0)
	for _, key := range loop(50_000, 1000, 500) {
		if key >= 1000 {
			continue // one of the others
		}
		if key != next {
			t.Fatalf("key %d, want %d", key, next)
		}
		next = (next + 1) % 1000
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadDir(dir); err == nil {
		t.Error("an empty folder is no error")
	}
	for _, name := range []string{"b.gz", "a.gz"} {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		zipped := gzip.NewWriter(file)
		fmt.Fprint(zipped, "7\n8\n7\n")
		_ = zipped.Close()
		_ = file.Close()
	}
	traces, err := ReadDir(dir)
	if err != nil || len(traces) != 2 {
		t.Fatalf("%v, %v", traces, err)
	}
	if a := traces[0]; a.Name != "a" || !slices.Equal(a.Keys, []int64{7, 8, 7}) || a.Unique() != 2 {
		t.Errorf("got %+v", a)
	}
}
