package main

import (
	"fmt"
	"math/rand/v2"

	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
	"github.com/nearcache/nearcache/internal/trace"
)

// kind names a kind of key as the report does.
func kind[K subject.Key]() string {
	var key K
	return fmt.Sprintf("%T", key)
}

// shuffled returns the keys of items 0 to n-1 in a random order: what is asked for
// most is not what was put in first, and so does not lie together in memory.
func shuffled[K subject.Key](n int) []K {
	keys := make([]K, n)
	for i, id := range rand.New(rand.NewPCG(1, 1)).Perm(n) {
		keys[i] = subject.KeyOf[K](int64(id))
	}
	return keys
}

// evenly returns a ring of random keys of items 0 to n-1. A string in it is never
// the one that an item was put in with, but an equal one, as in a service.
func evenly[K subject.Key](n int) drive.Ring[K] {
	rng := rand.New(rand.NewPCG(2, uint64(n)))
	return ring(1<<13, keysOf[K](n), func() int { return rng.IntN(n) })
}

// zipf returns a ring of keys of items 0 to n-1, the rank r with a weight of
// 1/(r+1)^1.01.
func zipf[K subject.Key](n int) drive.Ring[K] {
	const length = 1 << 20
	ranks := trace.Zipf(3, 1.01, n, length)
	return ring(length, keysOf[K](n), func() (rank int) {
		rank, ranks = int(ranks[0]), ranks[1:]
		return rank
	})
}

// fresh returns a ring of keys that are all different, from an item's number on.
func fresh[K subject.Key](n int, from int64) drive.Ring[K] {
	r := make(drive.Ring[K], n)
	for i := range r {
		r[i] = subject.KeyOf[K](from + int64(i))
	}
	return r
}

func keysOf[K subject.Key](n int) []K { return fresh[K](n, 0) }

func ring[K subject.Key](length int, keys []K, next func() int) drive.Ring[K] {
	r := make(drive.Ring[K], length)
	for i := range r {
		r[i] = keys[next()]
	}
	return r
}

// item makes the item of a key, another one each time.
func item[K subject.Key](key K) *subject.Value {
	return &subject.Value{ID: subject.IDOf(key), Name: "an item", Price: 9.99}
}
