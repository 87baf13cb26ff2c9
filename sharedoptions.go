package nearcache

import (
	"encoding/json"
	"time"
)

const (
	defaultMaxValueBytes = 1 << 20
	mostValueBytes       = 512 << 20 // the most bytes of a string in Redis
	defaultSharedTimeout = 250 * time.Millisecond
	defaultLoadWait      = 5 * time.Second
	mostSharedTTL        = 10 * 365 * 24 * time.Hour
)

// SharedOptions say how a cache uses the shared level. All instances should use the same.
// An instance without them neither reads nor stores values. But what it invalidates is
// deleted there too.
//
// The shared level needs Redis to tell its history (INFO). Without it the shared level is
// not used, which is logged once. Values are read from the master. Anyone who can write to
// that Redis can write values.
type SharedOptions[V any] struct {
	// TTL bounds how long a value is stored in Redis. It counts from the start of the
	// value's load, and a random part of up to 10 % is taken off. An item's Expiry, or
	// NotFoundTTL, bounds it as well. An item that is read there is kept here for no longer
	// than the value still has to live there.
	//
	// TTL may be longer than the cache's TTL: an item that expires here is then read again
	// there. From a millisecond to ten years. Defaults to the cache's TTL, which then must
	// not be NoExpiry.
	TTL time.Duration

	// Codec turns values into bytes and back. A value that comes from Redis is a copy,
	// without what the codec leaves out. JSON leaves out unexported fields and the types
	// behind interfaces. The first value that the cache stores, of up to 1 MiB, is decoded
	// once and compared. The log has a warning if a field is not the same. Defaults to the
	// JSON of encoding/json.
	//
	// A value of another type counts as none, and is replaced. Two types are the same if
	// they have the same name and package. With the default codec, their exported fields
	// have to be the same too, field tags of JSON included. With another Codec, the type of
	// the codec has to be the same instead: that codec handles changes of the form.
	Codec Codec[V]

	// Version is the version of the values' form, for changes of it that the type does not
	// show. A value of another version counts as none, and is replaced. So a deployment may
	// change the form if it changes this number. Invalidations still reach old and new
	// instances. While both run, they replace each other's values. Defaults to 0.
	Version uint32

	// CompressOver is the size in bytes above which an encoded value is compressed, if that
	// makes it smaller. The compression is S2, an extension of Snappy. Values are read
	// whether they are compressed or not. Negative is an error. Defaults to 0: none is
	// compressed.
	CompressOver int

	// MaxValueBytes bounds the size of a value in bytes, as the Codec makes it, before
	// compression. A larger value is not stored, and SharedStats.TooLarge counts it.
	//
	// It also bounds what is read of a value in Redis, and what a compressed value is
	// unpacked to. A larger value counts as none and is replaced, and SharedStats.Oversized
	// counts it. The label before the value, of at most 98 bytes, is not included. At most
	// 512 MiB. Negative is an error. Defaults to 1 MiB.
	MaxValueBytes int

	// Timeout bounds each request to Redis, the wait for a connection included. After that
	// the item is loaded from the source, and callers get no error. A connection that is
	// being made is not given up: it is bounded by the connect timeout, and serves later
	// requests.
	//
	// After five failures in a row, Redis is not asked again for a second. Then one request
	// goes first. A Get whose context is cancelled before its deadline may still wait for
	// Timeout. At least a millisecond. Defaults to 250 ms.
	Timeout time.Duration

	// LoadWait is for how long an instance that dies while it loads an item keeps others
	// from loading it. They wait for the value, since the instance has claimed the load.
	//
	// While a load runs, its claim is extended. So a load may take longer than LoadWait:
	// for as long as LoadTimeout, or for twelve times LoadWait without one. After that
	// another instance claims the load, and the log has a line. The value of the first load
	// may then not be stored.
	//
	// At least a millisecond. A LoadWait longer than LoadTimeout counts as LoadTimeout.
	// Defaults to 5 seconds.
	LoadWait time.Duration
}

// Codec turns values into bytes for Redis, and back. Its methods are called from several
// goroutines at once. The value that Unmarshal returns may keep the bytes that it was
// given, which nothing else uses. If it keeps a part of them, none of them is freed.
type Codec[V any] interface {
	Marshal(value V) ([]byte, error)
	Unmarshal(data []byte) (V, error)
}

// withDefaults returns o with its defaults filled in, for a cache with that TTL and
// LoadTimeout.
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

// jsonCodec is the codec of encoding/json.
type jsonCodec[V any] struct{}

func (jsonCodec[V]) Marshal(value V) ([]byte, error) { return json.Marshal(value) }

func (jsonCodec[V]) Unmarshal(data []byte) (value V, err error) {
	err = json.Unmarshal(data, &value)
	return value, err
}
