package nearcache

import "maps"

const (
	// A map that has held fewer entries is left as it is.
	leastShrunk = 256

	// A map that holds less than this part of the most that it has held is replaced. A
	// copy is as many steps as it has entries, and is made after many times as many
	// deletions.
	shrinkShare = 16
)

// forget deletes key from m. A map never gives memory back: one that a burst has made
// large, such as a GetMany of a million keys, is replaced when it holds little of that.
// The most that it has held since it was made is kept in most, by forget alone: what has
// been added in between is there still.
func forget[K comparable, V any](m *map[K]V, most *int, key K) {
	*most = max(*most, len(*m))
	delete(*m, key)
	if n := len(*m); *most >= leastShrunk && n <= *most/shrinkShare {
		smaller := make(map[K]V, n)
		maps.Copy(smaller, *m)
		*m, *most = smaller, n
	}
}
