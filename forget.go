package nearcache

import "maps"

const (
	// A map that has never had this many entries is left as it is.
	leastShrunk = 256

	// A map that has less than this share of the most entries that it has had is replaced.
	// The copy takes as many steps as the map has entries. Many times as many deletions
	// came before it.
	shrinkShare = 16
)

// forget deletes key from m. A Go map never gives memory back. So a map that a burst has
// made large, such as a GetMany of a million keys, is replaced once little is left in it.
//
// most is the most entries that the map has had since it was made. Only forget updates it:
// between two calls a map only grows.
func forget[K comparable, V any](m *map[K]V, most *int, key K) {
	*most = max(*most, len(*m))
	delete(*m, key)
	if n := len(*m); *most >= leastShrunk && n <= *most/shrinkShare {
		smaller := make(map[K]V, n)
		maps.Copy(smaller, *m)
		*m, *most = smaller, n
	}
}
