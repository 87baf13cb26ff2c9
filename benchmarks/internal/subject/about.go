package subject

// About is what a reader has to know of a subject.
type About struct {
	Name   string
	Module string // empty: the standard library
	Setup  string // how it is configured
	Hit    string // what the time of a hit includes
}

// Abouts describes all subjects, in the order of the report.
func Abouts() []About {
	const (
		object = "the object"
		redis  = "github.com/redis/go-redis/v9"
		otter  = "github.com/maypok86/otter/v2"
		lru    = "github.com/hashicorp/golang-lru/v2"
		rueid  = "github.com/redis/rueidis"
	)
	return []About{
		{Nearcache, "github.com/nearcache/nearcache", "hits: connected to Redis, with a lease; elsewhere `Local()`. Defaults but for capacity and TTL; a `Regions` function where it says so", object + ", TTL, region and lease checked, hit counted"},
		{"nearcache Local", "github.com/nearcache/nearcache", "the same on `Local()`: no Redis, no lease to lose", object + ", TTL and region checked, hit counted"},
		{"nearcache LRU", "github.com/nearcache/nearcache", "the first, with `Eviction: LRU`", object + ", all of the above, and a move in a list"},
		{Otter, otter, "`MaximumSize`, `ExpiryWriting`; asked by `GetIfPresent`, and by `Get` with a loader where a miss loads", object + ", TTL checked"},
		{"otter with statistics", otter, "the same, with `stats.NewCounter()`", object + ", TTL checked, hit counted"},
		{"theine", "github.com/Yiling-J/theine-go", "`SetWithTTL`; its loading cache where a miss loads", object + ", TTL checked, hit counted"},
		{"ristretto", "github.com/dgraph-io/ristretto/v2", "10 counters for each item of capacity, cost 1, `BufferItems: 64`, `IgnoreInternalCost`, `SetWithTTL`", object + ", TTL checked"},
		{"golang-lru", lru, "`lru.New`: strict LRU, no expiry", object},
		{"golang-lru expirable", lru, "`expirable.NewLRU`: strict LRU", object + ", TTL checked"},
		{"ttlcache", "github.com/jellydator/ttlcache/v3", "`WithTTL`, `WithCapacity`, `WithDisableTouchOnHit`, and `Start`", object + ", TTL checked, hit counted"},
		{"sturdyc", "github.com/viccon/sturdyc", "10 shards, evicts 10 %; asked by `GetOrFetch`; string keys only", object + ", TTL checked"},
		{"go-redis/cache", "github.com/go-redis/cache/v9", "`NewTinyLFU` and no Redis behind it; string keys only", "the object, decoded from msgpack, new in each hit"},
		{"rueidis", rueid, "`DoCache` of a GET; string keys only", "a string of JSON, not decoded; memory tracked by Redis"},
		{"rueidis JSON", rueid, "the same with `DecodeJSON`", "the object, decoded from JSON, new in each hit"},
		{"go-redis CSC", redis, "`Protocol: 3` and `ClientSideCacheConfig`; string keys only", "a string of JSON, not decoded; memory tracked by Redis"},
		{"Redis GET", redis, "`Get`, on the loopback interface; string keys only", "a round trip over the network; a string of JSON, not decoded"},
		{Timed, "", "a map, a `sync.RWMutex`, one `time.Since` and a deadline for each item; never evicts", object + ", TTL checked"},
		{"map+RWMutex", "", "the same without a deadline", object},
		{"sync.Map", "", "never evicts, no deadline", object},
		{EmptyLoop, "", "what the measuring costs, which is in all other numbers too", "nothing"},
	}
}
