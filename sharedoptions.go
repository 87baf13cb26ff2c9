package nearcache

import (
	"encoding/json"
	"time"
)

const (
	defaultMaxValueBytes = 1 << 20
	mostValueBytes       = 512 << 20 // of a string in Redis
	defaultSharedTimeout = 250 * time.Millisecond
	defaultLoadWait      = 5 * time.Second
	mostSharedTTL        = 10 * 365 * 24 * time.Hour
)

// SharedOptions say how a cache uses the shared level. All instances should use the
// same; one that has none neither reads nor stores values, but what it invalidates
// goes there, too.
//
// Redis needs to tell its history (INFO), or the shared level is not used, which is
// logged once. Values are read from the master. Who can write to that Redis can write
// values.
type SharedOptions[V any] struct {
	// TTL bounds how long a value stands in Redis, counted from the start of its load;
	// a random part of up to 10 % is taken off. It may be longer than the cache's TTL:
	// then an item that expires here is read again there. An item's Expiry, or
	// NotFoundTTL, bounds it as well, and what is read there is kept here for no longer
	// than it still has there. From a millisecond to ten years. Defaults to the cache's
	// TTL, which then must not be NoExpiry.
	TTL time.Duration

	// Codec turns values into bytes and back. What comes from Redis is a copy, without
	// what the codec leaves out: with JSON, unexported fields and the types behind
	// interfaces. The first value that the cache stores, of up to 1 MiB, is decoded once
	// and compared, and the log has a warning if a field is not the same. Defaults to the
	// JSON of encoding/json.
	//
	// A value of another type counts as none, and is replaced. Two types are the same if
	// their names and packages are and, with the default, their exported fields, field tags
	// of JSON included. With a Codec the type of the codec has to be the same in place of
	// the fields: it sees to changes of the form.
	Codec Codec[V]

	// Version is that of the values' form, for changes of it that the type does not show.
	// A value of another version counts as none, and is replaced: so a deployment may
	// change the form by changing this number, while invalidations go on reaching old and
	// new instances. While both run they replace each other's values. Defaults to 0.
	Version uint32

	// CompressOver is the size in bytes from which on an encoded value is compressed
	// (S2, a kind of Snappy), if that makes it smaller. Values are read whether they
	// are compressed or not. Negative is an error. Defaults to 0: none is.
	CompressOver int

	// MaxValueBytes bounds the size of a value in bytes, as the Codec makes it, before
	// compression. A larger one is not stored, and SharedStats.TooLarge counts it. The
	// same holds for what is read: no more than that is read of a value in Redis, nor
	// unpacked if it is compressed. A larger one counts as none and is replaced, and
	// SharedStats.Oversized counts it. The label in front, of at most 98 bytes, comes on
	// top. At most 512 MiB. Negative is an error. Defaults to 1 MiB.
	MaxValueBytes int

	// Timeout bounds each request to Redis, and the wait for a connection. After that the
	// item is loaded from the source. A connection that is being made then goes on, by the
	// connect timeout, and serves later requests. After five failures in a row Redis is not asked for a
	// second, and then once to begin with. Callers get no error for it. A Get whose
	// context is cancelled, rather than at its deadline, may wait for that long. At
	// least a millisecond. Defaults to 250 ms.
	Timeout time.Duration

	// LoadWait is for how long an instance that dies while it loads an item keeps others
	// from loading it. They wait for the value, since the instance has claimed the load.
	// While a load runs its claim is extended, so loads may take longer than that: for as
	// long as LoadTimeout, or for twelve times LoadWait without one. Then another instance
	// claims the load, the log has a line, and what the first one brings may not be stored.
	// At least a millisecond. It is taken for LoadTimeout if it is longer. Defaults to 5
	// seconds.
	LoadWait time.Duration
}

// withDefaults returns o with its defaults filled in, for a cache with those times.
func (o SharedOptions[V]) withDefaults(ttl, loadTimeout time.Duration, wrong *optionErrors) *SharedOptions[V] {
	if o.TTL == 0 {
		wrong.check(ttl != NoExpiry, "Shared.TTL is required, since TTL is NoExpiry")
		if o.TTL = ttl; ttl == NoExpiry {
			o.TTL = defaultTTL // so that no other rule fails too
		}
	}
	if o.Codec == nil {
		o.Codec = jsonCodec[V]{}
	}
	if o.MaxValueBytes == 0 {
		o.MaxValueBytes = defaultMaxValueBytes
	}
	if o.Timeout == 0 {
		o.Timeout = defaultSharedTimeout
	}
	if o.LoadWait == 0 {
		o.LoadWait = defaultLoadWait
	}
	if o.LoadWait > 0 && loadTimeout > 0 {
		o.LoadWait = max(min(o.LoadWait, loadTimeout), time.Millisecond)
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"TTL", o.TTL}, {"Timeout", o.Timeout}, {"LoadWait", o.LoadWait}} {
		wrong.check(d.value >= time.Millisecond, "Shared.%s %v is less than a millisecond", d.field, d.value)
		wrong.check(d.value <= mostSharedTTL, "Shared.%s %v is more than ten years", d.field, d.value)
	}
	wrong.check(o.CompressOver >= 0, "Shared.CompressOver %d is negative", o.CompressOver)
	wrong.check(o.MaxValueBytes >= 0, "Shared.MaxValueBytes %d is negative", o.MaxValueBytes)
	wrong.check(o.MaxValueBytes <= mostValueBytes, "Shared.MaxValueBytes %d is more than 512 MiB", o.MaxValueBytes)
	return &o
}

// Codec turns values into bytes for Redis, and back. Its methods are called from
// several goroutines at once. What Unmarshal returns may keep the bytes that it was given:
// nobody else has them. It keeps all of them from being freed.
type Codec[V any] interface {
	Marshal(value V) ([]byte, error)
	Unmarshal(data []byte) (V, error)
}

// jsonCodec is that of encoding/json.
type jsonCodec[V any] struct{}

func (jsonCodec[V]) Marshal(value V) ([]byte, error) { return json.Marshal(value) }

func (jsonCodec[V]) Unmarshal(data []byte) (value V, err error) {
	err = json.Unmarshal(data, &value)
	return value, err
}
