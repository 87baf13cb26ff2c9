package subject

import (
	"slices"
	"strings"
)

// The names that the report's ratios are taken to.
const (
	Nearcache = "nearcache"
	Otter     = "otter"
	Timed     = "map+RWMutex+TTL"
	EmptyLoop = "empty loop"
)

// Local returns the subjects that hold items in this process's memory, within a
// capacity.
func Local[K Key]() []Subject[K] {
	return append([]Subject[K]{
		{Name: Nearcache, Open: openNearcache[K]},
		{Name: Otter, Open: openOtter[K]},
		{Name: "theine", Open: openTheine[K]},
		{Name: "ristretto", Open: openRistretto[K]},
		{Name: "golang-lru", Open: openLRU[K]},
		{Name: "golang-lru expirable", Open: openExpirable[K]},
		{Name: "ttlcache", Open: openTTLCache[K]},
	}, stringsOnly[K](
		Subject[string]{Name: "sturdyc", Open: openSturdyc},
	)...)
}

// References returns what a programmer would write without a library: nothing is
// ever evicted.
func References[K Key]() []Subject[K] {
	return []Subject[K]{
		{Name: Timed, Open: openTimedMap[K], Unbounded: true},
		{Name: "map+RWMutex", Open: openLockedMap[K], Unbounded: true},
		{Name: "sync.Map", Open: openSyncMap[K], Unbounded: true},
	}
}

// Hits returns all whose hits are compared.
func Hits[K Key]() []Subject[K] {
	local := Local[K]()
	return slices.Concat(
		local[:1],
		[]Subject[K]{
			{Name: "nearcache Local", Open: openNearcacheLocal[K]},
			{Name: "nearcache LRU", Open: openNearcacheLRU[K], NeedsRedis: true},
		},
		local[1:2],
		[]Subject[K]{{Name: "otter with statistics", Open: openOtterCounting[K]}},
		local[2:],
		stringsOnly[K](
			Subject[string]{Name: "go-redis/cache", Open: openRedisCache},
			Subject[string]{Name: "rueidis", Open: openRueidis, NeedsRedis: true},
			Subject[string]{Name: "rueidis JSON", Open: openRueidisJSON, NeedsRedis: true},
			Subject[string]{Name: "go-redis CSC", Open: openRedisTracking, NeedsRedis: true},
			Subject[string]{Name: "Redis GET", Open: openRedisGet, NeedsRedis: true, Network: true},
		),
		References[K](),
		[]Subject[K]{{Name: EmptyLoop, Open: openEmptyLoop[K], Unbounded: true}},
	)
}

// stringsOnly returns subjects that know strings only, if K is string.
func stringsOnly[K Key](subjects ...Subject[string]) []Subject[K] {
	fit, _ := any(subjects).([]Subject[K])
	return fit
}

// Chosen returns the subjects whose names begin with one of the prefixes; none
// chooses all. Case does not matter.
func Chosen[K Key](subjects []Subject[K], prefixes []string) []Subject[K] {
	if len(prefixes) == 0 {
		return subjects
	}
	return slices.DeleteFunc(slices.Clone(subjects), func(s Subject[K]) bool {
		return !Matches(s.Name, prefixes)
	})
}

// Matches reports whether a name begins with one of the prefixes, or there is none.
func Matches(name string, prefixes []string) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(prefix string) bool {
		return strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix))
	})
}

// Named returns the subject of that name.
func Named[K Key](name string) (Subject[K], bool) {
	all := Hits[K]()
	i := slices.IndexFunc(all, func(s Subject[K]) bool { return s.Name == name })
	if i < 0 {
		return Subject[K]{}, false
	}
	return all[i], true
}
