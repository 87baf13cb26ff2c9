package nearcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/nearcache/nearcache/internal/transport"
)

// label precedes the bytes of a value in Redis:
//
//	format   1 byte
//	id       16 bytes, different for each value
//	flags    1 byte
//	epoch    string
//	count    uvarint: how often the cache had been cleared when the load was claimed
//	version  uvarint: SharedOptions.Version
//	type     8 bytes: see fingerprintOf
//	loaded   uvarint: milliseconds since 1970 by the instance's clock; for people to read
//	life     uvarint: how many milliseconds it was to live
//
// A string is its length as a uvarint, and that many bytes. The golden bytes are in
// testdata/values.
type label struct {
	id       string
	notFound bool // the item does not exist
	packed   bool // the bytes are compressed with S2
	epoch    string
	count    uint64
	version  uint32
	kind     uint64 // of the values, see fingerprintOf
	loaded   time.Time
	life     time.Duration
}

const (
	valueFormat = 2 // format 1 had no type

	flagNotFound = 1
	flagPacked   = 2

	flagsAt = transport.IDAt + transport.IDLength

	mostAfterFlags = 80 // bytes of a label
	mostLabel      = flagsAt + 1 + mostAfterFlags
)

var (
	errNoValue      = errors.New("not a value of nearcache, or of another format")
	errOtherVersion = errors.New("a value of another SharedOptions.Version, or of another type")
	errTooLarge     = errors.New("a value larger than SharedOptions.MaxValueBytes")
)

func (l *label) append(b []byte) []byte {
	b = append(b, valueFormat)
	b = append(b, l.id...)
	var flags byte
	if l.notFound {
		flags |= flagNotFound
	}
	if l.packed {
		flags |= flagPacked
	}
	b = append(b, flags)
	b = appendString(b, l.epoch)
	b = binary.AppendUvarint(b, l.count)
	b = binary.AppendUvarint(b, uint64(l.version))
	b = binary.BigEndian.AppendUint64(b, l.kind)
	b = binary.AppendUvarint(b, uint64(max(l.loaded.UnixMilli(), 0)))
	return binary.AppendUvarint(b, uint64(l.life.Milliseconds()))
}

// readLabel returns a value's label and the bytes after it.
func readLabel(value []byte) (l label, rest []byte, err error) {
	if len(value) <= flagsAt || value[0] != valueFormat || value[flagsAt] > flagNotFound|flagPacked {
		return l, nil, errNoValue
	}
	l.id = string(value[transport.IDAt:flagsAt])
	l.notFound = value[flagsAt]&flagNotFound != 0
	l.packed = value[flagsAt]&flagPacked != 0
	rest = value[flagsAt+1:]
	r := reader{rest: string(rest[:min(len(rest), mostAfterFlags)])}
	before := len(r.rest)
	l.epoch, l.count = r.string(), r.uvarint()
	version := r.uvarint()
	if len(r.rest) >= 8 {
		l.kind = binary.BigEndian.Uint64([]byte(r.rest[:8]))
		r.rest = r.rest[8:]
	} else {
		return l, nil, errNoValue
	}
	loaded, life := r.uvarint(), r.uvarint()
	if r.err != nil || version > 1<<32-1 || loaded > 1<<50 || life > uint64(mostSharedTTL/time.Millisecond) {
		return l, nil, errNoValue
	}
	l.version = uint32(version)
	l.loaded, l.life = time.UnixMilli(int64(loaded)), time.Duration(life)*time.Millisecond
	return l, rest[before-len(r.rest):], nil
}

// encodeValue returns the bytes of a value, or of a not-found, after its label. It returns
// none if the value is larger than SharedOptions.MaxValueBytes.
func encodeValue[V any](o *SharedOptions[V], l label, value V) (bytes []byte, err error) {
	l.version = o.Version
	if l.notFound {
		return l.append(nil), nil
	}
	data, err := marshal(o.Codec, value)
	if err != nil {
		return nil, err
	}
	if len(data) > o.MaxValueBytes { // compressed or not: readers have to unpack it
		return nil, nil
	}
	if o.CompressOver > 0 && len(data) > o.CompressOver {
		if packed := s2.Encode(nil, data); len(packed) < len(data) {
			data, l.packed = packed, true
		}
	}
	return append(l.append(make([]byte, 0, 64+len(data))), data...), nil
}

// unpackedLength returns how many bytes a value unpacks to, or 0 if it is not packed. It
// unpacks nothing.
func unpackedLength(l label, data []byte, most int) (int, error) {
	if !l.packed || l.notFound {
		return 0, nil
	}
	n, err := s2.DecodedLen(data)
	switch {
	case err != nil:
		return 0, errNoValue
	case n > most:
		return 0, errTooLarge
	}
	return n, nil
}

// decodeValue returns the value after a label. That of a not-found is zero. It does not
// unpack more than SharedOptions.MaxValueBytes.
func decodeValue[V any](o *SharedOptions[V], l label, data []byte) (value V, err error) {
	if l.version != o.Version {
		return value, errOtherVersion
	}
	if l.notFound {
		return value, nil
	}
	if l.packed {
		if _, err := unpackedLength(l, data, o.MaxValueBytes); err != nil {
			return value, err
		}
		if data, err = s2.Decode(nil, data); err != nil {
			return value, err
		}
	}
	return unmarshal(o.Codec, data)
}

// marshal and unmarshal call the codec. They turn a panic into an error, since callers need
// not hear of what the shared level could not do.
func marshal[V any](c Codec[V], value V) (data []byte, err error) {
	defer recovered("Marshal", &err)
	return c.Marshal(value)
}

func unmarshal[V any](c Codec[V], data []byte) (value V, err error) {
	defer recovered("Unmarshal", &err)
	return c.Unmarshal(data)
}

// recovered turns a panic into an error. It is deferred.
func recovered(what string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%s panicked: %v", what, r)
	}
}
