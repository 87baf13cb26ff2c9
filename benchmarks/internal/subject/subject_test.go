package subject

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/measure"
	"github.com/nearcache/nearcache/internal/redistest"
)

func TestSubjectsHoldWhatTheyWereFilledWith(t *testing.T) {
	server, err := measure.StartServer()
	if errors.Is(err, exec.ErrNotFound) {
		t.Log("redis-server is not installed: what needs it is left out")
	} else if err != nil {
		t.Fatal(err)
	} else {
		t.Cleanup(server.Kill)
	}
	t.Run("int64", func(t *testing.T) { testHolding[int64](t, server) })
	t.Run("string", func(t *testing.T) { testHolding[string](t, server) })
}

func testHolding[K Key](t *testing.T, server *redistest.Server) {
	load := func(K) *Value { return &Value{ID: 7, Name: "seven"} }
	keys := make([]K, 1000)
	for i := range keys {
		keys[i] = KeyOf[K](int64(i))
	}
	config := Config[K]{Capacity: 10_000, TTL: time.Hour, Load: load, Regions: true}
	if server != nil {
		config.Redis = server.Addr
		if err := Seed(server.Addr, keys, load); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range Hits[K]() {
		t.Run(s.Name, func(t *testing.T) {
			if s.NeedsRedis && server == nil {
				t.Skip("redis-server is not installed")
			}
			cache, err := s.Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer cache.Close()
			if err := cache.Fill(keys, load); err != nil {
				t.Fatal(err)
			}
			for _, key := range keys {
				if !cache.Get(key) {
					t.Fatalf("%v is not held", key)
				}
			}
			if s.Name != EmptyLoop && cache.Len != nil && cache.Len() != len(keys) {
				t.Errorf("%d are held", cache.Len())
			}
		})
	}
}

func TestReadThroughLoadsWhatIsNotHeld(t *testing.T) {
	for _, s := range append(Local[string](), References[string]()...) {
		t.Run(s.Name, func(t *testing.T) {
			loads := 0
			load := func(string) *Value { loads++; return &Value{} }
			cache, err := s.Open(Config[string]{Capacity: 1000, TTL: time.Hour, Load: load, ReadThrough: true, Exact: true})
			if err != nil {
				t.Fatal(err)
			}
			defer cache.Close()
			get := cache.ReadThrough(load)
			for range 3 {
				if !get("a") || !get("b") {
					t.Fatal("no item")
				}
				cache.settle()
			}
			if loads != 2 {
				t.Errorf("%d loads", loads)
			}
		})
	}
}

func TestEverySubjectIsDescribed(t *testing.T) {
	described := map[string]bool{}
	for _, a := range Abouts() {
		described[a.Name] = true
	}
	for _, s := range Hits[string]() {
		if !described[s.Name] {
			t.Errorf("%s is not", s.Name)
		}
		if named, ok := Named[string](s.Name); !ok || named.Name != s.Name {
			t.Errorf("%s is not found by its name", s.Name)
		}
	}
}

func TestChosen(t *testing.T) {
	names := func(prefixes ...string) (names []string) {
		for _, s := range Chosen(Hits[int64](), prefixes) {
			names = append(names, s.Name)
		}
		return names
	}
	if got := names("OTTER", "sync"); len(got) != 3 {
		t.Errorf("got %v", got)
	}
	if got := names(); len(got) != len(Hits[int64]()) {
		t.Errorf("got %v", got)
	}
}

func TestKeysTellTheirItems(t *testing.T) {
	for _, id := range []int64{0, 7, 1_000_000} {
		if got := IDOf(KeyOf[int64](id)); got != id {
			t.Errorf("int64: %d of %d", got, id)
		}
		if got := IDOf(KeyOf[string](id)); got != id {
			t.Errorf("string: %d of %d", got, id)
		}
	}
}
