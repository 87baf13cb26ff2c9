package nearcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// This file is the wire format, without I/O and without a clock. Golden messages are in
// testdata/messages.
//
// A message is an envelope and a body. The format of the envelope never changes: a
// rolling deployment runs two versions of this library on one channel, and every
// instance has to follow the chain of positions even if it cannot decode the bodies.
//
//	magic      4 bytes   "NRC\x01"
//	kind       1 byte    'I' invalidation, 'E' echo, 'N' notice
//	publisher  16 bytes  the identity of the instance that published it
//	previous   1 byte of length, then the position before this message (empty: there was none)
//	own        1 byte of length, then the position after this message
//	body       the rest
//
// The publish script writes previous, own and their lengths. What comes before them is
// the head, which the publisher passes to the script.
//
// The body of an invalidation is a version byte, followed by any number of operations:
//
//	1 remove keys    name, count, keys
//	2 clear regions  name, count, regions
//	3 clear cache    name
//	4 clear all
//
// An echo is the answer to an instance's probe, on the instance's own channel. It is not
// part of the chain: previous is empty, and own is the position that the probe found. Its
// body is a version byte, the server's history id (empty: unknown), and the probe's nonce.
//
// A string is a uvarint of its length, and that many bytes. Counts are uvarints. A notice
// is not part of the chain and has no positions. Its kind is reserved for tools, and a
// version that does not know a notice ignores it.
const (
	magic       = "NRC\x01"
	bodyVersion = 1
	echoVersion = 1

	kindInvalidation = 'I'
	kindEcho         = 'E'
	kindNotice       = 'N'

	opRemoveKeys   = 1
	opClearRegions = 2
	opClearCache   = 3
	opClearAll     = 4

	positionLength  = 40 // hexadecimal digits of a SHA-1
	maxMessageBytes = 256 << 10

	// A body beyond these bounds counts as undecodable, so that the cost of a message to
	// its receivers is bounded whatever it says. No publisher of this library exceeds
	// them. Its bodies have at most maxMessageBytes, and each operation, key or region
	// takes at least one byte. The exception is a body with a single larger entry. That
	// has at most maxBatchBytes, and the name of its cache.
	maxBodyBytes   = 2 * maxBatchBytes
	maxBodyEntries = maxMessageBytes // operations, keys and regions
)

// instanceID identifies an instance on the channel. It is random, and there is a new one
// for each subscription.
type instanceID [16]byte

// envelope is a received message, decoded as far as every version of the format agrees.
type envelope struct {
	kind      byte
	publisher instanceID
	previous  string // empty if the channel had no position
	own       string
	body      string
}

var (
	// errForeign is the error of a payload that does not come from nearcache. Such
	// payloads are ignored.
	errForeign = errors.New("not a nearcache message")

	// errUndecodable is the error of a nearcache message that cannot be decoded. It may
	// have invalidated anything, so the receiver clears everything.
	errUndecodable = errors.New("undecodable nearcache message")
)

// head returns the part of the envelope that comes before the positions.
func head(kind byte, publisher instanceID) string {
	return magic + string([]byte{kind}) + string(publisher[:])
}

// decodeEnvelope decodes a payload's envelope. Its error is errForeign or wraps
// errUndecodable. Previous and body share the payload's memory. Own is a copy: it is kept
// until the next message, and would otherwise keep the whole payload in memory.
func decodeEnvelope(payload string) (envelope, error) {
	const head = len(magic) + 1 + len(instanceID{})
	if len(payload) < len(magic) || payload[:len(magic)] != magic {
		return envelope{}, errForeign
	}
	if len(payload) < head {
		return envelope{}, fmt.Errorf("%w: it ends inside the head", errUndecodable)
	}
	e := envelope{kind: payload[len(magic)]}
	copy(e.publisher[:], payload[len(magic)+1:head])
	if e.kind == kindNotice {
		return e, nil
	}
	if e.kind != kindInvalidation && e.kind != kindEcho {
		return envelope{}, fmt.Errorf("%w: kind %q", errUndecodable, e.kind)
	}

	rest := payload[head:]
	for _, position := range []*string{&e.previous, &e.own} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return envelope{}, fmt.Errorf("%w: it ends inside a position", errUndecodable)
		}
		n := 1 + int(rest[0])
		*position, rest = rest[1:n], rest[n:]
	}
	if e.own == "" {
		return envelope{}, fmt.Errorf("%w: it has no position", errUndecodable)
	}
	e.own, e.body = strings.Clone(e.own), rest
	return e, nil
}

// bodyReader reads the operations of an invalidation's body one by one. It allocates
// nothing: what it returns shares the body's memory.
//
// If it fails, the operations before may have been applied already. That does no harm,
// since a body that fails clears everything anyway (see errUndecodable).
type bodyReader struct {
	op    byte   // the code of the operation that next has read
	cache string // the cache that it concerns

	left    uint64 // how many values of the operation are still to be read
	entries int    // operations and values read so far
	rest    reader
}

// readBody begins to read a body.
func readBody(body string) bodyReader {
	var b bodyReader
	switch {
	case len(body) > maxBodyBytes:
		b.rest.err = fmt.Errorf("%w: it has %d bytes, and %d are the most", errUndecodable, len(body), maxBodyBytes)
	case body == "" || body[0] != bodyVersion:
		b.rest.err = fmt.Errorf("%w: unknown body version", errUndecodable)
	default:
		b.rest.rest = body[1:]
	}
	return b
}

// next reads the next operation without its values, and reports whether there is one. It
// skips values of the previous operation that were not read.
func (b *bodyReader) next() bool {
	for b.left > 0 {
		b.value()
	}
	if b.rest.rest == "" || !b.count() {
		return false
	}
	b.op, b.cache = b.rest.byte(), ""
	switch b.op {
	case opRemoveKeys, opClearRegions:
		b.cache = b.rest.string()
		b.left = b.rest.uvarint()
		if b.left > uint64(len(b.rest.rest)) { // each takes at least one byte
			b.rest.fail()
		}
	case opClearCache:
		b.cache = b.rest.string()
	case opClearAll:
	default:
		b.rest.err = fmt.Errorf("%w: unknown operation %d", errUndecodable, b.op)
	}
	return b.ok()
}

// value reads the next key or region of the operation, and reports whether there is
// one.
func (b *bodyReader) value() (string, bool) {
	if b.left == 0 || !b.count() {
		return "", false
	}
	b.left--
	v := b.rest.string()
	return v, b.ok()
}

// count counts an entry, and reports whether it is within the bound.
func (b *bodyReader) count() bool {
	b.entries++
	if b.entries > maxBodyEntries {
		b.rest.err = fmt.Errorf("%w: it has more than %d entries", errUndecodable, maxBodyEntries)
	}
	return b.ok()
}

// ok reports whether the body was fine so far. If not, it drops the rest of the body.
func (b *bodyReader) ok() bool {
	if b.rest.err != nil {
		b.left, b.rest.rest = 0, ""
		return false
	}
	return true
}

// err returns the error that ended the reading, if any. It wraps errUndecodable.
func (b *bodyReader) err() error { return b.rest.err }

// decodeEcho returns what an echo's body says. Its error wraps errUndecodable.
func decodeEcho(body string) (history, nonce string, err error) {
	r := reader{rest: body}
	if version := r.byte(); r.err == nil && version != echoVersion {
		return "", "", fmt.Errorf("%w: unknown version of an echo", errUndecodable)
	}
	history, nonce = r.string(), r.string()
	return strings.Clone(history), nonce, r.err // a copy: the history is kept, the payload is not
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// reader reads values from the front of a body. After the first error every value is
// zero.
type reader struct {
	rest string
	err  error
}

func (r *reader) byte() byte {
	if r.rest == "" {
		r.fail()
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) uvarint() uint64 {
	var n uint64
	for shift := 0; r.err == nil; shift += 7 {
		b := r.byte()
		if shift == 63 && b > 1 { // more than 64 bits
			r.fail()
			return 0
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			break
		}
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.fail()
	}
	if r.err != nil {
		return ""
	}
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *reader) fail() {
	if r.err == nil {
		r.err = fmt.Errorf("%w: it ends inside an operation", errUndecodable)
	}
	r.rest = ""
}
