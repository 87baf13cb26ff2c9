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
)

// NoExpiry as Options.TTL, Options.NotFoundTTL or the result of Options.Expiry
// keeps an item until it is invalidated or evicted for space.
const NoExpiry time.Duration = math.MaxInt64

// Unbounded as MaxStaleness serves items until they expire, however long nothing
// was heard of Redis. Messages that were missed still clear the caches, as soon as
// that is known.
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
// zero value is a process-local backplane, see [Connect].
type BackplaneOptions struct {
	// RedisConnectionString names the Redis that all instances share, as
	// "host:6380,password=…,ssl=True,abortConnect=False" (the form that
	// StackExchange.Redis reads) or as a redis://, rediss:// or unix:// URL;
	// valkey:// and valkeys:// are the same.
	// Empty, with Redis nil: the backplane is process-local, and a warning says so.
	// A string of blanks only is an error, since it is a setting gone missing.
	RedisConnectionString string

	// Redis says the same with go-redis's own options, for what a connection
	// string cannot say, a private certificate authority for instance. The
	// options are copied; the backplane makes its own clients from them, because
	// its subscription and its publisher need settings of their own (retries, the
	// RESP version and client-side caching are not used, for instance). Setting both
	// this and RedisConnectionString is an error. Defaults to nil.
	//
	// Beside its two or three connections the backplane has some for the shared level,
	// if caches have Shared: as many as are in use at a time, but no more than
	// PoolSize, or 8 if that is 0. One that was not used for ConnMaxIdleTime is closed;
	// 0 means a minute, negative never. Each answers one request at a time, so PoolSize
	// divided by the round trip bounds the requests per second of all caches together.
	//
	// Credentials come from StreamingCredentialsProvider, CredentialsProviderContext,
	// CredentialsProvider, or Username and Password, in this order. A streaming provider
	// is subscribed to once, from the first connection until Close, and new connections
	// get its newest credentials. If the server ends a connection because its
	// credentials have expired, it is made again, and memory stays as it is if nothing
	// was missed. OnConnect is called for each connection, after its authentication.
	//
	// A panic in one of these functions, or in Dialer, is an error of the attempt.
	Redis *redis.UniversalOptions

	// Channel is the Pub/Sub channel; instances on one channel keep each other's
	// caches in step, and two applications on one Redis use two. It matches
	// [A-Za-z0-9_.-]{1,128}. On a database other than 0 the channel's name in
	// Redis has "@" and the database's number behind it, because Pub/Sub knows
	// no databases. Defaults to "nearcache".
	Channel string

	// MaxStaleness bounds staleness: an invalidation that Redis has accepted is
	// effective on this instance within that time, whatever fails; normally within
	// a network round trip. It holds by a lease that a probe in Redis renews, five
	// times in the smallest MaxStaleness of the backplane and its caches. While
	// there is none, because Redis is away, an item is served for MaxStaleness after
	// its load began and then loaded anew. (Or up to a fifth less, which depends on
	// the key, so that a source is not asked for everything at once.) It should be
	// longer than Load takes and than the round trip to Redis: a load that takes
	// longer is of use to those who wait for it only, while there is no lease. At
	// least 100 ms, or [Unbounded]; if every bound is, it probes as for 5 seconds,
	// and as for 30 if all are longer. Defaults to 5 seconds.
	MaxStaleness time.Duration

	// Logger receives one line for each change of state and for what needs a
	// person's attention, none for each message. Never a secret. Its handler may read
	// caches. The goroutines that Flush and writes wait for, wait for the handler: in it,
	// these need a context that ends, and Close lasts for CloseTimeout. A handler that
	// panics, or ends its goroutine, loses the line. Defaults to slog.Default().
	//
	// go-redis has lines of its own, for the whole process, on standard error. They
	// are the program's to redirect, by redis.SetLogger, or to switch off, by
	// logging.Disable of github.com/redis/go-redis/v9/logging.
	Logger *slog.Logger

	// OnEvent is told of what happens to the backplane and needs no reading of logs:
	// changes of its state, clears of the caches and why, trouble with publishing; see
	// [Event]. It is called with one event at a time, in order, in a goroutine of its
	// own without any lock held, so it may take its time and call whatever it likes:
	// nothing waits for it. Up to 256 events wait for their turn; past that the oldest
	// are dropped, and the next one says how many were. A panic in it is not recovered.
	//
	// It is called from when Connect succeeds, perhaps before Connect has returned.
	// Close waits until it was told everything, for as long as CloseTimeout lasts and
	// for a tenth of a second at least; then a call that has not returned goes on, and
	// no other is made. It may call Close, which then waits that long for the call
	// that it is made from, and is not told of itself: "go bp.Close()" has neither.
	// Defaults to nil: no goroutine, and nothing is done.
	OnEvent func(Event)

	// AllowDisconnectedStart lets Connect return before Redis was reached, and
	// keeps trying in the background, as abortConnect=false in the connection
	// string does. Defaults to false: Connect fails when Redis cannot be reached.
	AllowDisconnectedStart bool

	// PublishOnly is for jobs and admin tools, which tell others of changes and cache
	// nothing: see [NewInvalidator]. The backplane has one connection in place of
	// three, hears of nothing, and does not probe; [New] on it is an error, and
	// MaxStaleness has no meaning. Connect returns once Redis has accepted a message
	// from it, an empty one. It needs fewer rights in Redis, which the README lists.
	// Without RedisConnectionString or Redis it is an error. Defaults to false.
	PublishOnly bool

	// CloseTimeout bounds all that Close does, which is mostly to deliver what is still
	// queued; for OnEvent alone it may take a tenth of a second more. Negative is an
	// error. Defaults to 5 seconds.
	CloseTimeout time.Duration
}

// Eviction chooses which item makes room when a cache is full.
type Eviction int

const (
	// DefaultEviction is the best policy that was measured: today the queues of
	// S3-FIFO (Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP
	// 2023) with shares that adapt. Its hits take no lock.
	DefaultEviction Eviction = iota

	// LRU evicts the least recently used item, exactly so within each shard of
	// the cache (a cache with a capacity under 2048 is a single shard). Its hits
	// take the shard's lock.
	LRU
)

// Options says what a cache holds and for how long. Name and Load are required.
//
// No lock is held while one of its functions is called, nor while a method of a key, of a
// context or of an error is. Each may use the cache and its backplane. It waits for
// itself only if it waits for what it is called for: a Regions that Gets its own key, for
// instance. A panic, or [runtime.Goexit], in one of them ends the call that it belongs to,
// and no other. docs/loads.md has a table.
type Options[K comparable, V any] struct {
	// Name is the cache's name on the channel: instances keep caches of the same
	// name in step. It matches [A-Za-z0-9_.-]{1,128}, and no other open cache of
	// the backplane may have it.
	Name string

	// Load reads an item from the source. It is required, unless there is LoadMany. It
	// is called without any lock held. One load of a key serves all who ask for it,
	// unless the key or the cache was invalidated since it began: then it goes on for those
	// who wait already, and the next to ask starts another. If a region was cleared since,
	// the next to ask wait for it too, and share one more load if the result turns out to
	// belong to that region. Its context
	// carries the values of the first caller's and is cancelled when the last caller
	// that waits for it has gone. A caller does not join a load that has already lasted
	// as long as the caller's own deadline leaves it: it begins another, which later
	// callers join, so that a load that hangs does not hold up its key for ever. An error
	// goes to all callers as it is and is not kept, but see NotFoundTTL. Load may call Get for other keys; for the
	// key that it is loading, Get waits until the context ends. Loads that wait for each
	// other in a circle wait for ever if different callers began them.
	//
	// The context is the load's, and no caller's:
	//
	//   - It has no deadline: a caller's own bounds only how long that caller waits.
	//     LoadTimeout bounds the load.
	//   - It ends with the load. What a value keeps of it, such as a stream or an open
	//     query, fails later, for everybody. Give [context.WithoutCancel] of it to what has
	//     to outlive the load, and a bound of its own.
	//   - Its values may be read after the first caller's request has ended, since the load
	//     may go on for others or in the background. A context that a framework takes back
	//     then has the values of the next request, perhaps of another tenant. Do not give
	//     such a context to Get: copy what a load needs, with a key type of your own, by
	//     [context.WithValue] into a context that is not taken back. What decides about
	//     the result belongs into the cache's key, as all callers of the key share it.
	//
	// The key is a copy where it is a string, or has MarshalText: the caller may use the
	// memory of its own key again as soon as Get has returned.
	//
	// It runs in a goroutine of its own, which the callers can leave, or in that of a
	// caller of Get or Refresh whose wait nothing can end before the load: neither his
	// context ([context.Background] for one) nor LoadTimeout nor SoftTimeout, and there is
	// no shared level. In a caller's goroutine, which it also is where nothing is kept, as
	// after Close, a Load that calls [runtime.Goexit] ends that; else callers get an error.
	Load func(ctx context.Context, key K) (V, error)

	// LoadMany reads several items from the source in one go, for GetMany, as Load
	// does one. The keys are those that are not in memory and not being loaded
	// already, each once; the slice is LoadMany's. What is not in the map that it
	// returns does not exist, or, if it returns an error, failed with that error;
	// what else is in the map is ignored. Its context is cancelled when nobody waits
	// for any of the items any more. Without Load, a Get calls LoadMany for its one
	// key. Defaults to nil: GetMany calls Load for each key.
	LoadMany func(ctx context.Context, keys []K) (map[K]V, error)

	// LoadTimeout bounds how long one call of Load or LoadMany is waited for. Then its
	// context ends, the callers get an error that wraps context.DeadlineExceeded,
	// whether Load returns or not, and the next Get begins another load. A Load that
	// does not heed its context keeps its place (see MaxConcurrentLoads) until it
	// returns. The time that a load waits for its turn does not count. It is recommended
	// wherever a source can hang: callers without a deadline wait for a load until it
	// ends, and those with one are only served by the next. Negative is an error. Defaults
	// to 0: no bound but that of the callers' contexts, see Load.
	LoadTimeout time.Duration

	// MaxConcurrentLoads bounds how many calls of Load and LoadMany are under way at a
	// time, so that a cold start, a clear, or an outage of Redis does not ask too much
	// of the source. Others wait for their turn, first come, first served, as long as
	// anyone waits for them. A load that is waited for by another load with a turn, of
	// this cache or of another one, takes none, so that they do not wait for each
	// other: Load has to pass its context on. Without memory, after Close for instance,
	// Get and Refresh do not count. Negative is an error. Defaults to 0: no bound.
	MaxConcurrentLoads int

	// Capacity bounds the number of items held in memory, exactly. Negative is an
	// error. Defaults to 100 000, whether MaxWeight is set or not: a cache of light
	// items may need more.
	Capacity int

	// MaxWeight bounds the sum of the items' weights, exactly, in whatever unit Weigh
	// has. Capacity bounds their number too. An item that alone weighs more is served
	// and not kept, and CacheStats.TooHeavy counts it. Kept not-founds and errors
	// have a weight as well, see WeighNotFound.
	// Bytes are a good unit; an item takes about 90 beside those of its key and
	// value, and a region that it shares with no other item about 200 beside those of
	// its name. Negative is an error. Such a cache has a single lock for its loads and
	// writes; hits take none. Defaults to 0: weights do not count.
	MaxWeight int64

	// Weigh returns an item's weight, and is required if MaxWeight is set. It is
	// called once with every item before it is kept, and must not block. Zero is
	// legal, and nothing but Capacity bounds the number of such items. Defaults to
	// nil.
	Weigh func(key K, value V) uint32

	// WeighNotFound returns the weight of a not-found that NotFoundTTL keeps, for which
	// err is ErrNotFound, and of an error that ErrorTTL keeps, in the unit of Weigh. It
	// is called once with each before it is kept, and must not block. A panic in it
	// counts as one of the loader. With MaxWeight 0 it is an error. Defaults to nil:
	// the weight is in bytes, whatever unit Weigh has. It is what the layer needs for
	// an entry (about 160, and more if V is a large struct), the bytes of the key (the
	// length of a string, of the encoded form of a type with MarshalText), and the
	// length of the error's text. So set it if Weigh counts anything but bytes: a
	// not-found that alone weighs more than MaxWeight is not kept. Set it too if errors
	// keep more alive than their text.
	WeighNotFound func(key K, err error) uint32

	// Eviction chooses what makes room in a full cache.
	// Defaults to DefaultEviction.
	Eviction Eviction

	// TTL bounds how long an item is served, counted from the start of its load
	// or of the write that put it here. A random part of up to 10 % is taken off,
	// so that items loaded together do not expire together. NoExpiry keeps items
	// without a limit of time. Negative is an error. Defaults to 5 minutes.
	TTL time.Duration

	// Expiry chooses the time to live of each item and overrides TTL. Its result
	// is taken as it is, without the random part. Zero or less: the item is not
	// kept; NoExpiry: without a limit. It must not block. Defaults to nil.
	Expiry func(key K, value V) time.Duration

	// NotFoundTTL is how long a not-found is kept, exactly, so that asking for
	// items that do not exist spares the source; NoExpiry is legal. The callers of
	// the load get the loader's own error, and later ones ErrNotFound: let the
	// loader return an error that wraps ErrNotFound, or test for both. Negative is
	// an error. Defaults to 0: a not-found is not kept.
	NotFoundTTL time.Duration

	// IsNotFound reports whether a loader's error means that the item does not
	// exist; set it to recognise sql.ErrNoRows, for instance. It changes no error;
	// see NotFoundTTL. Defaults to errors.Is(err, ErrNotFound).
	//
	// It is not asked about an error that wraps the not-found of another item: one that
	// Load, or what it calls, got from Get or Refresh of this cache or of another one. That
	// a product's category does not exist does not mean that the product does not. Such an
	// error is a failure of the load, and is logged once. If the item does not exist
	// either, return ErrNotFound. The two can be told apart only if Load passes its context
	// on, and not where the other item is read by GetMany, which returns no error for it.
	IsNotFound func(err error) bool

	// ErrorTTL is how long a load's error is kept, exactly, so that a source that fails
	// is not asked at every Get: meanwhile Get returns the same error. It is evicted as
	// the item would be, and by the clear of any region. While an item is held its
	// place is not taken by an error, see StaleIfError. Not-founds have NotFoundTTL.
	// Every other error that Load returns is kept, the source's own timeouts
	// (context.DeadlineExceeded) included: a load's context has no caller's deadline. A
	// panic is not kept, nor is anything of a load that all callers have left.
	// Negative is an error. Defaults to 0: an error is not kept.
	ErrorTTL time.Duration

	// RefreshAfter is the age of an item from which on a hit has it loaded anew in the
	// background, and returns at once what is held ("stale while revalidate", RFC
	// 5861): what is asked for often is then never waited for. Counted from the start
	// of the load or write that put it here; it should be less than TTL by more than a
	// load takes. Each item is refreshed by one load at a time, and a cache by 16; with
	// MaxConcurrentLoads a refresh begins only if it does not have to wait. With LoadMany,
	// items that fall due within a millisecond, or in one GetMany, are loaded by one call
	// of it, up to 256 keys each. If it
	// fails, or panics, which CacheStats.LoadErrors counts, the item stays until it
	// expires, and the next try waits for 50 to 100 ms, then twice as long each time,
	// up to 10 s. A refresh that nobody waits for is cancelled when its item expires (one
	// of an item that never expires after RefreshAfter, and not before 5 minutes), and
	// the next Get loads. Negative is an error. Defaults to 0: nothing is refreshed ahead.
	RefreshAfter time.Duration

	// StaleIfError is for how long after it has expired an item may still be served,
	// if its load fails ("stale if error", RFC 5861), so that an outage of the source
	// is not one of the service. Get waits for the load first; after a failure there
	// is no other for 50 to 100 ms, then twice as long each time, up to 10 s, and the
	// item is served at once. A panic is no failure of the source, and is raised. An
	// item that was invalidated is never served, and the bound on staleness holds as
	// ever. Nor is one that was idle, see IdleTTL. Negative is an error. Defaults to 0:
	// what has expired is not served.
	StaleIfError time.Duration

	// StaleWithoutLease puts availability before the bound on staleness, when Redis and
	// the source are both gone: an item whose load fails is served also if there is no
	// lease and its load began MaxStaleness ago, until it expires (and for StaleIfError
	// after that). With it, MaxStaleness does not bound the staleness of this cache
	// while its source fails: an instance that is cut off from Redis may then serve
	// what others have invalidated. Defaults to false.
	StaleWithoutLease bool

	// SoftTimeout is how long a Get, or a GetMany in all, waits for a load if there is
	// an item that StaleIfError or StaleWithoutLease lets it serve in its place. Then
	// it serves that, and the load goes on and is kept as ever; until it ends, other
	// Gets of the key need not wait. It is cancelled when the item can be served no longer
	// and nobody waits for it; LoadTimeout should bound it sooner. Negative is an error, and so is SoftTimeout without either
	// of them. Defaults to 0: Get waits for the load's end.
	SoftTimeout time.Duration

	// IdleTTL is how long an item is kept that nobody asks for, beside TTL or Expiry:
	// each hit, but no Peek, begins it anew. Up to a sixteenth is taken off, so that
	// hits on an item need not be noted more often than that. Less than a millisecond
	// is an error. Defaults to 0: for any time.
	IdleTTL time.Duration

	// MaxStaleness is the bound on staleness for this cache, shorter or longer than
	// the backplane's; see BackplaneOptions.MaxStaleness. At least 100 ms, or
	// [Unbounded]: served until it expires, even without Redis. On a process-local
	// backplane nothing is ever stale. If it is less than four round trips to Redis,
	// the lease is often too old for this cache, and its items are then loaded again
	// once they are that old: New logs a warning. Other caches go by their own bound.
	// Defaults to 0: the backplane's.
	MaxStaleness time.Duration

	// Regions names the regions that an item belongs to, for ClearRegion. It is
	// called with every item before it is kept and must always say the same for
	// the same item. It must not block. Any string is a region, and nil means none;
	// the slice is not kept.
	// Defaults to nil: items belong to no region.
	Regions func(key K, value V) []string

	// NotFoundRegions names the regions that a not-found of a key belongs to, for
	// ClearRegion, as Regions does for items: name those in which the item would be if it
	// existed, or every region to which an item of that key can come to belong. A clear
	// of other regions then spares the kept not-found. It is called with every key of
	// which a not-found is kept, and must not block; a panic counts as the loader's. Nil
	// as its result means none: then only the key itself and clears of the cache evict
	// the not-found. Kept errors (see ErrorTTL) belong to every region all the same.
	// Defaults to nil: a kept not-found belongs to every region.
	NotFoundRegions func(key K) []string

	// Shared keeps values in Redis too, so that what one instance has loaded the others
	// need not load: a miss asks Redis first, and the source then. See
	// [SharedOptions], of which the zero value will do. A process-local backplane has
	// no use for it. Defaults to nil: each instance loads for itself.
	Shared *SharedOptions[V]
}

var legalName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// optionErrors collects what is wrong, so that one error says it all.
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
	o.Logger = guardedLogger(o.Logger)
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
	if o.LoadMany != nil || o.Shared != nil { // which say so in another way
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
