package nearcache

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// check returns an error if an invariant of the table is broken, or it does not hold as
// many entries as it should.
func (t *table[K, V]) check(want int, hash func(K) uint64) error {
	held, passed := 0, make([]int, len(t.buckets))
	for e := range t.all() {
		held++
		h := hash(e.Item.key)
		b, slot := t.locate(h, e)
		if got := b.tags.Load() >> (8 * slot) & 0xff; got != tag(h) {
			return fmt.Errorf("the tag of %v is %x", e.Item.key, got)
		}
		for i := home(h); t.at(i) != b; i++ {
			passed[i%uint64(len(t.buckets))]++
		}
	}
	if held != want || held > t.room() {
		return fmt.Errorf("%d entries are held and not %d, with room for %d", held, want, t.room())
	}
	for i := range t.buckets {
		b := &t.buckets[i]
		tags := b.tags.Load()
		if count := int(tags >> passedShift); count != passed[i] && count != passedMany {
			return fmt.Errorf("bucket %d counts %d as passed on, of %d", i, count, passed[i])
		}
		for slot := range b.slots {
			if (tags>>(8*slot)&0xff == 0) != (b.slots[slot].Load() == nil) {
				return fmt.Errorf("slot %d of bucket %d has a tag or an entry, and not both", slot, i)
			}
		}
	}
	return nil
}

func newTestEntry(key, value int) *entry[int, int] {
	return &entry[int, int]{Item: item[int, int]{key: key, value: value}}
}

// hashes are what the table must cope with: good ones, and the worst.
var hashes = []struct {
	name string
	hash func(int) uint64
}{
	{"a good hash", func(key int) uint64 { return maphash.Comparable(seed, key) }},
	{"tags that collide", func(key int) uint64 { return maphash.Comparable(seed, key) & (1<<57 - 1) }},
	{"one home", func(key int) uint64 { return uint64(key) << 57 }},
	{"one hash", func(int) uint64 { return 0xffff_ffff_ffff_ffff }},
}

var seed = maphash.MakeSeed()

func TestTableAgainstMap(t *testing.T) {
	for _, h := range hashes {
		t.Run(h.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				keys := rapid.SampledFrom([]int{2, 10, 100, 600}).Draw(t, "keys")
				table, want := newTable[int, int](0), map[int]*entry[int, int]{}
				for i := range rapid.IntRange(1, 400).Draw(t, "steps") {
					key := rapid.IntRange(0, keys-1).Draw(t, "key")
					old := table.find(h.hash(key), key)
					if old != want[key] {
						t.Fatalf("key %d has %p, want %p", key, old, want[key])
					}
					e := newTestEntry(key, i)
					switch op := rapid.SampledFrom([]string{"put", "put", "delete", "resize"}).Draw(t, "op"); {
					case op == "put" && old == nil:
						if len(want) == table.room() {
							table = table.resized(2*table.room(), h.hash)
						}
						table.put(h.hash(key), e)
						want[key] = e
					case op == "put":
						table.replace(h.hash(key), old, e)
						want[key] = e
					case op == "delete" && old != nil:
						table.delete(h.hash(key), old)
						delete(want, key)
					case op == "resize":
						table = table.resized(rapid.IntRange(len(want), 2*keys).Draw(t, "room"), h.hash)
					}
					if err := table.check(len(want), h.hash); err != nil {
						t.Fatal(err)
					}
				}
				for key, e := range want {
					if table.find(h.hash(key), key) != e {
						t.Fatalf("key %d is lost", key)
					}
				}
			})
		})
	}
}

// A reader finds what is there all the time, whatever comes and goes around it,
// and never what is under another key.
func TestTableReadersSeeWhatIsThere(t *testing.T) {
	const steady, coming, readers = 200, 200, 2
	for _, h := range hashes[:3] {
		t.Run(h.name, func(t *testing.T) {
			var current atomic.Pointer[table[int, int]]
			current.Store(newTable[int, int](steady / 4))
			held := 0
			put := func(e *entry[int, int]) {
				table := current.Load()
				if held == table.room() {
					table = table.resized(2*table.room(), h.hash)
					current.Store(table)
				}
				held++
				table.put(h.hash(e.Item.key), e)
			}
			for key := range steady {
				put(newTestEntry(key, key))
			}
			var all sync.WaitGroup
			var stop atomic.Bool
			for range readers {
				all.Go(func() {
					for !stop.Load() {
						key := rand.IntN(steady + coming)
						e := current.Load().find(h.hash(key), key)
						if e == nil && key < steady || e != nil && (e.Item.key != key || e.Item.value%1000 != key) {
							t.Errorf("key %d has %v", key, e)
							return
						}
					}
				})
			}
			for i := range 100_000 {
				key := rand.IntN(steady + coming)
				table := current.Load()
				old := table.find(h.hash(key), key)
				switch {
				case old == nil:
					put(newTestEntry(key, key))
				case key < steady:
					table.replace(h.hash(key), old, newTestEntry(key, 1000*i+key))
				default:
					table.delete(h.hash(key), old)
					held--
				}
				if i%10_000 == 0 {
					current.Store(current.Load().resized(held, h.hash))
				}
			}
			stop.Store(true)
			all.Wait()
			require.NoError(t, current.Load().check(held, h.hash))
		})
	}
}

// What lies between a key and its value is two cache lines.
func TestLayout(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the sizes are those of 64 bits")
	}
	assert.EqualValues(t, 64, unsafe.Sizeof(bucket[int64, *int]{}))
	assert.EqualValues(t, 64, unsafe.Sizeof(entry[int64, *int]{}))
	assert.EqualValues(t, 72, unsafe.Sizeof(entry[string, *int]{}))
}
