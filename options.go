package nearcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/internal/barrier"
)

// NoExpiry is a time to live without an end: the item stays until it is invalidated, or
// evicted to make room. It is a legal Options.TTL, Options.NotFoundTTL, and result of
// Options.Expiry.
const NoExpiry time.Duration = math.MaxInt64

// Unbounded is a MaxStaleness without a bound. Items are served until they expire,
// however long Redis does not answer. An instance that finds that it has missed
// messages still clears its caches.
const Unbounded time.Duration = math.MaxInt64

const (
	defaultChannel      = "nearcache"
	defaultCapacity     = 100_000
	defaultTTL          = 5 * time.Minute
	defaultCloseTimeout = 5 * time.Second
	defaultMaxStaleness = 5 * time.Second
	leastMaxStaleness   = 100 * time.Millisecond
	leastIdleTTL        = time.Millisecond
)

// BackplaneOptions says how to reach the Redis that joins the instances. The
// zero value gives a process-local backplane, see [Connect].
type BackplaneOptions struct {
	// RedisConnectionString names the Redis that all instances share. It has one of two
	// forms: "host:6380,password=…,ssl=True,abortConnect=False", which
	// StackExchange.Redis reads too, or a URL with the scheme redis, rediss or unix.
	// The schemes valkey and valkeys mean the same as redis and rediss.
	//
	// Empty, with Redis nil: the backplane is process-local, and Connect logs a warning.
	// A string of blanks is an error, since it is most likely a setting that got lost.
	RedisConnectionString string

	// Redis names the same Redis by go-redis's own options. They have settings that a
	// connection string lacks, such as a private certificate authority. Setting both this
	// and RedisConnectionString is an error. Defaults to nil.
	//
	// The options are copied, and the backplane makes its own clients from them. It
	// ignores those that would break its subscription or its publisher, such as retries,
	// the RESP version and client-side caching.
	//
	// The backplane has two connections, and a third once it has published. If caches have Shared, it has a pool of
	// further ones, which grows with the requests under way. PoolSize bounds that pool; 0
	// means 8. A connection that was idle for ConnMaxIdleTime is closed; 0 means a minute,
	// and negative means never. Each connection of the pool answers one request at a time.
	// So PoolSize divided by the round trip bounds the requests per second of all caches
	// together.
	//
	// Credentials come from the first of these that is set: StreamingCredentialsProvider,
	// CredentialsProviderContext, CredentialsProvider, Username and Password. The backplane
	// subscribes to a streaming provider once, from the first connection until Close, and
	// new connections use its newest credentials. If the server ends a connection because
	// its credentials have expired, the backplane connects again. Memory is kept if no
	// message was missed meanwhile. OnConnect is called for each connection, after its
	// authentication.
	//
	// If one of these functions panics, or Dialer does, the attempt fails with an error.
	Redis *redis.UniversalOptions

	// Channel is the Pub/Sub channel. Instances on one channel keep each other's caches
	// coherent. So two applications on one Redis need two channels. It matches
	// [A-Za-z0-9_.-]{1,128}. Pub/Sub ignores databases. So if the database is not 0, the
	// channel's name in Redis ends in "@" and the database's number. Defaults to
	// "nearcache".
	Channel string

	// MaxStaleness bounds staleness: whatever fails, an invalidation that Redis has
	// accepted takes effect on this instance within that time. Normally that takes one
	// network round trip.
	//
	// The bound rests on a lease, which is renewed by probes of Redis. They are sent five
	// times in the smallest MaxStaleness of the backplane and its caches. While Redis is
	// away, there is no lease. Then an item is served for MaxStaleness after its load
	// began, and loaded again after that. That time is shortened by up to a fifth,
	// depending on the key, so that the source is not asked for everything at once.
	//
	// MaxStaleness should be longer than a call of Load, and than the round trip to Redis.
	// If a load takes longer while there is no lease, its callers get the result, and no
	// later Get does.
	//
	// At least 100 ms, or [Unbounded]. If the smallest bound is longer than 30 seconds, the
	// backplane probes as if it were 30 seconds. If every bound is Unbounded, it probes as
	// if it were 5 seconds. Defaults to 5 seconds.
	MaxStaleness time.Duration

	// Logger gets a line for each change of state, and for each problem that needs a
	// person's attention. It gets none for a message. No line shows a secret. Defaults to
	// slog.Default().
	//
	// The logger's handler may read caches. Flush and writes may have to wait until the
	// handler returns. So a handler that calls them has to pass a context that ends. A Close
	// that a handler calls lasts for CloseTimeout. If a handler panics, or ends its
	// goroutine, its line is lost.
	//
	// go-redis writes lines of its own to standard error, for the whole process. A program
	// can redirect them by redis.SetLogger. It can switch them off by logging.Disable of
	// github.com/redis/go-redis/v9/logging.
	Logger *slog.Logger

	// OnEvent is called for each event of the backplane, so that a program need not read
	// logs. Events are changes of its state, clears of the caches with their causes,
	// failures to publish, and others; see [Event]. Defaults to nil: no goroutine is
	// started.
	//
	// It is called with one event at a time, in order, in a goroutine of its own and
	// without a lock. Nothing waits for it, so it may take its time and call any method.
	// Up to 256 events are queued. Beyond that the oldest are dropped, and the next event
	// says how many were. A panic in OnEvent is not recovered.
	//
	// Calls begin when Connect succeeds, which may be before Connect has returned. Close
	// waits for the delivery of all events until CloseTimeout is over, and in any case for a
	// tenth of a second. A call that has not returned by then keeps running, and no call
	// follows it.
	//
	// OnEvent may call Close. Then Close waits in vain, for as long as said above: the call
	// of OnEvent that it waits for is the one that it is in. The event of that Close is
	// never delivered. Use "go bp.Close()" to avoid both.
	OnEvent func(Event)

	// AllowDisconnectedStart lets Connect return before Redis was reached. The backplane
	// then keeps trying in the background. abortConnect=false in the connection string
	// means the same. Defaults to false: Connect fails if Redis cannot be reached.
	AllowDisconnectedStart bool

	// PublishOnly is for jobs and admin tools that cache nothing and only tell others of
	// changes, see [NewInvalidator]. The backplane then has one connection instead of
	// three, receives no messages and sends no probes. New returns an error for it, and
	// MaxStaleness is ignored. Connect returns once Redis has accepted an empty message.
	// Such a backplane needs fewer rights in Redis; docs/redis.md lists them. PublishOnly
	// without RedisConnectionString and Redis is an error. Defaults to false.
	PublishOnly bool

	// CloseTimeout bounds how long Close takes. Most of that time is for the delivery of
	// queued messages. Close may wait for OnEvent a tenth of a second longer. Negative is an
	// error. Defaults to 5 seconds.
	CloseTimeout time.Duration
}

// Eviction chooses which item makes room when a cache is full.
type Eviction int

const (
	// DefaultEviction is the best policy that was measured. Today that is S3-FIFO (Yang
	// et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023), with queues
	// whose shares adapt. A hit takes no lock.
	DefaultEviction Eviction = iota

	// LRU evicts the least recently used item of a shard, exactly. A cache with a
	// capacity under 2048 is a single shard. A hit takes the shard's lock.
	LRU
)

// Options says what a cache holds and for how long. Name is required, and so is Load or
// LoadMany.
//
// The cache holds no lock while it calls a function of Options, or a method of a key,
// of a context or of an error. Each of these may use the cache and its backplane. None
// may wait for the operation that has called it: a Regions that calls Get for its own
// key waits for itself. A panic or a [runtime.Goexit] in one of them ends only the
// operation that called it. docs/loads.md has a table of these cases.
type Options[K comparable, V any] struct {
	// Name is the cache's name on the channel. Caches with the same name, on all instances,
	// are kept coherent. It matches [A-Za-z0-9_.-]{1,128}. No other open cache of the
	// backplane may have the same name. It is required.
	Name string

	// Load reads an item from the source. It is required unless LoadMany is set.
	//
	// All callers that ask for a key while it is being loaded share one load. There are
	// three exceptions:
	//
	//   - The key or the cache was invalidated since the load began. Callers that were
	//     waiting before still get the load's result. The next caller begins another load.
	//     After a clear of a region, the next callers wait for the load too. If its result
	//     turns out to belong to that region, they share one more load.
	//   - The lease was lost since the load began, and the load's result might not be
	//     served any more. The next caller begins another load.
	//   - The load has already run for at least as long as the caller can still wait, by
	//     its deadline. That caller begins another load, which later callers share. So a
	//     load that hangs does not block its key for ever.
	//
	// All callers get an error of Load as it is. The cache does not keep it, but see
	// NotFoundTTL and ErrorTTL.
	//
	// ctx belongs to the load, not to a caller. It has the values of the first caller's
	// context, and is cancelled when no caller waits any longer.
	//
	//   - It has no deadline. A caller's deadline bounds how long that caller waits;
	//     LoadTimeout bounds the load.
	//   - It is cancelled when the load ends. So a value that holds ctx, such as a stream or
	//     an open query, fails later, for all callers. If a value has to use a context after
	//     the load, give it a [context.WithoutCancel] of ctx, and a time limit.
	//   - Its values may be read after the first caller's request has ended, because the
	//     load may continue for others or in the background. Some frameworks reuse a context
	//     for another request, perhaps of another tenant. Never pass such a context to Get.
	//     Copy what a load needs into a context that is not reused, by [context.WithValue]
	//     and a key type of your own.
	//   - All callers of a key get the same result. So the key must contain everything that
	//     the result depends on.
	//
	// Load may call Get for other keys. If it calls Get for its own key, that Get waits
	// until its context ends. Loads that different callers began may wait for each other
	// in a circle. Then they wait for ever.
	//
	// A key that is a string, or has MarshalText, is passed as a copy. So a caller may
	// reuse the memory of its key as soon as Get has returned.
	//
	// Load usually runs in a goroutine of its own, so that callers can leave. It runs in the
	// goroutine of the caller of Get or Refresh in two cases. In the first, that caller
	// cannot leave early: its context has no Done channel, as [context.Background], and
	// LoadTimeout, SoftTimeout and Shared are not set. In the second, nothing is kept, as
	// after Close. In these cases a [runtime.Goexit] in Load ends the caller's goroutine. In
	// all others, callers get an error.
	Load func(ctx context.Context, key K) (V, error)

	// LoadMany reads several items from the source in one call, for GetMany. It gets the
	// keys that are neither in memory nor being loaded, each once. It may keep and change
	// the slice. A key that is missing from the map that it returns does not exist. If it
	// returns an error too, the missing keys have failed with that error. Keys that were
	// not asked for are ignored. Its context is like that of Load, and is cancelled when
	// no caller waits for any of the items. If Load is nil, Get calls LoadMany with one
	// key. Defaults to nil: GetMany calls Load for each key.
	LoadMany func(ctx context.Context, keys []K) (map[K]V, error)

	// LoadTimeout bounds one call of Load or LoadMany, not counting the wait for a slot of
	// MaxConcurrentLoads. When it is over, the call's context ends, and callers get an
	// error that wraps context.DeadlineExceeded. The next Get begins another load, even if
	// Load has not returned. A Load that ignores its context keeps its slot until it
	// returns.
	//
	// Set LoadTimeout wherever a source can hang. Otherwise a caller waits until the load
	// ends, or until the caller's own deadline. Negative is an error. Defaults to 0: only
	// the callers' contexts bound a load, see Load.
	LoadTimeout time.Duration

	// MaxConcurrentLoads is the number of slots for calls of Load and LoadMany, so that a
	// cold start, a clear or an outage of Redis does not overload the source. Other loads
	// wait for a slot, first come, first served, as long as a caller waits for them.
	//
	// A Load that has a slot may call Get, on this cache or on another one. The load that
	// this Get waits for needs no slot. Otherwise the two could wait for each other. This
	// works only if Load passes its context on. If nothing is kept, as after Close, loads of
	// Get and Refresh take no slot either. Negative is an error. Defaults to 0: no bound.
	MaxConcurrentLoads int

	// Capacity bounds the number of items in memory, exactly. Negative is an error.
	// Defaults to 100 000, even if MaxWeight is set: a cache of light items may need more.
	Capacity int

	// MaxWeight bounds the sum of the items' weights, exactly, in the unit of Weigh.
	// Capacity bounds their number as well. An item that weighs more than MaxWeight is
	// returned and not kept, and CacheStats.TooHeavy counts it. Not-founds and errors that
	// are kept have a weight too, see WeighNotFound.
	//
	// Bytes are a good unit. An item takes about 90 bytes more than its key and value. A
	// region that no other item belongs to takes about 200 bytes more than its name.
	//
	// A cache with MaxWeight has a single lock for its loads and writes; hits take none.
	// Negative is an error. Defaults to 0: weights are not counted.
	MaxWeight int64

	// Weigh returns an item's weight. It is required if MaxWeight is set. Without MaxWeight
	// it is an error. It is called once for each item before it is kept, and must not block.
	// A weight of 0 is legal; then only Capacity bounds the number of such items. Defaults
	// to nil.
	Weigh func(key K, value V) uint32

	// WeighNotFound returns the weight of a not-found that NotFoundTTL keeps, or of an
	// error that ErrorTTL keeps. For a not-found, err is ErrNotFound. The unit is that of
	// Weigh. It is called once for each of them before it is kept, and must not block. A
	// panic in it counts as a panic of the loader. WeighNotFound without MaxWeight is an
	// error.
	//
	// Set WeighNotFound if Weigh counts anything but bytes: the default weight is in bytes,
	// and a not-found that weighs more than MaxWeight is not kept. Set it too if an error
	// keeps more in memory than its text.
	//
	// Defaults to nil. The weight is then the sum of what the cache needs for an entry
	// (about 160 bytes, more if V is a large struct), the length of the key (of a string,
	// or of the text that MarshalText returns), and the length of the error's text.
	WeighNotFound func(key K, err error) uint32

	// Eviction chooses which item makes room in a full cache.
	// Defaults to DefaultEviction.
	Eviction Eviction

	// TTL bounds how long an item is served. It counts from the start of the item's load,
	// or of the write that stored it. A random part of up to 10 % is taken off, so that
	// items that were loaded together do not expire together. NoExpiry is legal. Negative
	// is an error. Defaults to 5 minutes.
	TTL time.Duration

	// Expiry chooses the time to live of each item, in place of TTL. Its result is used as
	// it is, without a random part. If it is zero or less, the item is not kept. NoExpiry
	// is legal. It must not block. Defaults to nil.
	Expiry func(key K, value V) time.Duration

	// NotFoundTTL is how long a not-found is kept, exactly, so that the source is not asked
	// again and again for an item that does not exist (negative caching). The callers of
	// the load get the loader's own error. Later callers get ErrNotFound. If the loader's
	// error wraps ErrNotFound, one errors.Is recognises both. NoExpiry is legal.
	// Negative is an error. Defaults to 0: not-founds are not kept.
	NotFoundTTL time.Duration

	// IsNotFound reports whether a loader's error means that the item does not exist. Set
	// it to recognise sql.ErrNoRows, for instance. It changes no error; see NotFoundTTL.
	// Defaults to errors.Is(err, ErrNotFound).
	//
	// An error may wrap the not-found of another item, which Load got from Get or Refresh of
	// this cache or of another one. Such an error counts as a failure of the load, whatever
	// IsNotFound says, and is logged once: a product whose category does not exist may exist
	// itself. If the item does not exist either, return ErrNotFound itself.
	//
	// The cache can tell the two apart only if Load passes its context to that Get or
	// Refresh. It cannot tell them apart if Load reads the other item by GetMany, which
	// returns no error for a not-found.
	IsNotFound func(err error) bool

	// ErrorTTL is how long a load's error is kept, exactly, so that a source that fails is
	// not asked at every Get. Meanwhile Get returns the same error. An invalidation of the
	// key evicts it, as does a clear of the cache or of any region. An error never replaces
	// an item that is in memory, see StaleIfError.
	//
	// Three errors of Load are not kept: a not-found, which has NotFoundTTL; a panic; and
	// any error of a load that all callers have left. A timeout (context.DeadlineExceeded)
	// is kept. It is the source's own, since a load's context has no caller's deadline.
	// Negative is an error. Defaults to 0: errors are not kept.
	ErrorTTL time.Duration

	// RefreshAfter is the age at which a hit on an item begins a load in the background (a
	// refresh ahead of expiry). That hit, and all others until the load ends, return the
	// old item at once ("stale while revalidate", RFC 5861). So callers never wait for an
	// item that is often asked for. The age counts from the start of the item's load, or
	// of the write that stored it. RefreshAfter should be less than TTL by more than the
	// time that a load takes. Negative is an error. Defaults to 0: no refreshes.
	//
	// There is one refresh at a time for each item, and up to 16 for each cache. With
	// MaxConcurrentLoads, a refresh begins only if a slot is free. With LoadMany, one call
	// of it loads the items that fall due within a millisecond, or in one GetMany, up to
	// 256 keys.
	//
	// If a refresh fails or panics, CacheStats.LoadErrors counts it, and the item stays
	// until it expires. The next refresh begins no sooner than 50 to 100 ms later. That
	// pause doubles with each further failure, up to 10 s. If the item expires while no
	// caller waits for the refresh, the refresh is cancelled, and the next Get loads. A
	// refresh of an item that never expires is cancelled after RefreshAfter or 5 minutes,
	// whichever is longer.
	RefreshAfter time.Duration

	// StaleIfError is how long after its expiry an item may be returned if its load fails
	// ("stale if error", RFC 5861), so that an outage of the source is not an outage of the
	// service. Get first waits for the load. After a failure, Get returns the item at once,
	// and begins no load for 50 to 100 ms. That pause doubles with each further failure, up
	// to 10 s.
	//
	// An item is never returned if it was invalidated, exceeds MaxStaleness, or was idle for
	// IdleTTL. If the loader panics, Get panics and returns no item. Negative is an error.
	// Defaults to 0: an expired item is not returned.
	StaleIfError time.Duration

	// StaleWithoutLease prefers availability to the bound on staleness when Redis and the
	// source both fail. If the load of an item fails, the item in memory is returned, even
	// if there is no lease and that item was loaded longer ago than MaxStaleness. So it is
	// served until it expires, and then for StaleIfError.
	//
	// So MaxStaleness does not bound the staleness of this cache while its source fails: an
	// instance that is cut off from Redis may return what others have invalidated. Defaults
	// to false.
	StaleWithoutLease bool

	// SoftTimeout is for a Get, or a whole GetMany, that may return the old item by
	// StaleIfError or StaleWithoutLease. It waits for the load for SoftTimeout, and then
	// returns the old item. The load continues, and its result is kept as usual. Until the
	// load ends, other Gets of the key return the old item without a wait.
	//
	// The load is cancelled when the old item may no longer be returned and no caller waits.
	// LoadTimeout should end it sooner. Negative is an error. So is a SoftTimeout with
	// neither StaleIfError nor StaleWithoutLease. Defaults to 0: Get waits until the load
	// ends.
	SoftTimeout time.Duration

	// IdleTTL is how long an item is kept without a hit. TTL or Expiry bounds it as well.
	// Each hit starts the time again, but a Peek does not. Up to a sixteenth of IdleTTL is
	// taken off, so that an item is marked by one hit in that time, and not by every hit.
	// Less than a millisecond is an error. Defaults to 0: no bound.
	IdleTTL time.Duration

	// MaxStaleness is the bound on staleness for this cache, shorter or longer than that of
	// the backplane, see BackplaneOptions.MaxStaleness. At least 100 ms, or [Unbounded]:
	// items are served until they expire, even without Redis. On a process-local backplane
	// it has no effect, since nothing is ever stale there.
	//
	// It should be at least four round trips to Redis; if it is less, New logs a warning.
	// The lease is then often too old for this cache. While it is, the cache loads again
	// each item whose load began longer ago than MaxStaleness. Other caches keep their own
	// bounds. Defaults to 0: the backplane's.
	MaxStaleness time.Duration

	// Regions names the regions that an item belongs to, for ClearRegion. It is called for
	// each item before it is kept, and must always return the same for the same item. It
	// must not block. Any string is a region, and nil means none. The slice is not kept.
	// Defaults to nil: items belong to no region.
	Regions func(key K, value V) []string

	// NotFoundRegions names the regions that the not-found of a key belongs to, for
	// ClearRegion. Return the regions to which the item would belong if it existed. If
	// these are not known, return every region to which an item of that key can ever belong.
	// A clear of any other region does not evict the kept not-found. If the result is nil,
	// only an invalidation of the key and clears of the cache evict it.
	//
	// It is called for each key whose not-found is kept, and must not block. A panic in it
	// counts as a panic of the loader. It does not concern kept errors, which belong to
	// every region (see ErrorTTL). Defaults to nil: a kept not-found belongs to every
	// region.
	NotFoundRegions func(key K) []string

	// Shared keeps values in Redis too, so that an instance need not load what another one
	// has loaded: a miss reads Redis first, and then the source. See [SharedOptions]; its
	// zero value is a good start. A process-local backplane ignores it. Defaults to nil:
	// each instance loads for itself.
	Shared *SharedOptions[V]
}

var legalName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// optionErrors collects what is wrong with options, so that one error names all of it.
type optionErrors []string

func (e *optionErrors) check(ok bool, format string, args ...any) {
	if !ok {
		*e = append(*e, fmt.Sprintf(format, args...))
	}
}

func (e *optionErrors) checkName(field, name string) {
	e.check(legalName.MatchString(name), "%s %q does not match [A-Za-z0-9_.-]{1,128}", field, name)
}

func (e *optionErrors) checkStaleness(d time.Duration) {
	e.check(d >= leastMaxStaleness, "MaxStaleness %v is less than %v", d, leastMaxStaleness)
}

func (e *optionErrors) err() error {
	if len(*e) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrInvalidOptions, strings.Join(*e, "; "))
}

// withDefaults returns o with its defaults filled in, or an error that wraps
// ErrInvalidOptions and names every field that is wrong.
func (o BackplaneOptions) withDefaults() (BackplaneOptions, error) {
	if o.Channel == "" {
		o.Channel = defaultChannel
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = defaultCloseTimeout
	}
	if o.MaxStaleness == 0 {
		o.MaxStaleness = defaultMaxStaleness
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Logger = barrier.Logger(o.Logger)
	var wrong optionErrors
	wrong.check(o.RedisConnectionString == "" || o.Redis == nil,
		"RedisConnectionString and Redis are both set; set one")
	wrong.check(o.RedisConnectionString == "" || strings.TrimSpace(o.RedisConnectionString) != "",
		"RedisConnectionString is blank; leave it empty for a process-local backplane, or use Local")
	wrong.check(!o.PublishOnly || o.RedisConnectionString != "" || o.Redis != nil,
		"PublishOnly is set and neither RedisConnectionString nor Redis is, so there is nobody to publish to")
	wrong.checkName("Channel", o.Channel)
	wrong.check(o.CloseTimeout >= 0, "CloseTimeout %v is negative", o.CloseTimeout)
	wrong.checkStaleness(o.MaxStaleness)
	return o, wrong.err()
}

// withDefaults returns o with its defaults filled in, or an error that wraps
// ErrInvalidOptions and names every field that is wrong.
func (o Options[K, V]) withDefaults() (Options[K, V], error) {
	o.Name = strings.Clone(o.Name)
	if o.Capacity == 0 {
		o.Capacity = defaultCapacity
	}
	if o.TTL == 0 {
		o.TTL = defaultTTL
	}
	notFound := o.IsNotFound
	if notFound == nil {
		notFound = func(err error) bool { return errors.Is(err, ErrNotFound) }
	}
	o.IsNotFound = notFound
	if o.LoadMany != nil || o.Shared != nil { // these report a not-found as a bare ErrNotFound
		o.IsNotFound = func(err error) bool { return err == ErrNotFound || notFound(err) }
	}
	if o.Load == nil && o.LoadMany != nil {
		o.Load = loadOne(o.LoadMany)
	}
	var wrong optionErrors
	wrong.checkName("Name", o.Name)
	wrong.check(o.Load != nil || o.LoadMany != nil, "Load is nil, and so is LoadMany")
	wrong.check(o.Capacity >= 0, "Capacity %d is negative", o.Capacity)
	wrong.check(o.MaxWeight >= 0, "MaxWeight %d is negative", o.MaxWeight)
	wrong.check(o.MaxWeight == 0 || o.Weigh != nil, "MaxWeight is set and Weigh is nil")
	wrong.check(o.MaxWeight != 0 || o.Weigh == nil, "Weigh is set and MaxWeight is 0")
	wrong.check(o.MaxWeight != 0 || o.WeighNotFound == nil, "WeighNotFound is set and MaxWeight is 0")
	wrong.check(o.Eviction == DefaultEviction || o.Eviction == LRU, "Eviction %d is unknown", o.Eviction)
	wrong.check(o.TTL > 0, "TTL %v is negative", o.TTL)
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"NotFoundTTL", o.NotFoundTTL}, {"ErrorTTL", o.ErrorTTL}, {"LoadTimeout", o.LoadTimeout},
		{"RefreshAfter", o.RefreshAfter}, {"StaleIfError", o.StaleIfError}, {"SoftTimeout", o.SoftTimeout},
	} {
		wrong.check(d.value >= 0, "%s %v is negative", d.field, d.value)
	}
	wrong.check(o.MaxConcurrentLoads >= 0, "MaxConcurrentLoads %d is negative", o.MaxConcurrentLoads)
	wrong.check(o.IdleTTL == 0 || o.IdleTTL >= leastIdleTTL, "IdleTTL %v is less than %v", o.IdleTTL, leastIdleTTL)
	wrong.check(o.SoftTimeout <= 0 || o.StaleIfError > 0 || o.StaleWithoutLease,
		"SoftTimeout is set, and there is nothing to serve then without StaleIfError or StaleWithoutLease")
	if o.MaxStaleness != 0 {
		wrong.checkStaleness(o.MaxStaleness)
	}
	if o.Shared != nil {
		o.Shared = o.Shared.withDefaults(o.TTL, o.LoadTimeout, &wrong)
	}
	return o, wrong.err()
}
