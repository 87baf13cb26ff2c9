package nearcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// This file is the wire format: no I/O, no clock. Its golden bytes are in
// testdata/messages.
//
// A message is an envelope and a body. The envelope never changes, since a
// rolling deployment runs two versions of this library on one channel and every
// instance has to follow the chain of positions whatever the bodies say:
//
//	magic      4 bytes   "NRC\x01"
//	kind       1 byte    'I' invalidation, 'E' echo, 'N' notice
//	publisher  16 bytes  the identity of the instance that published it
//	previous   1 byte of length, then the position before this message (empty: there was none)
//	own        1 byte of length, then the position that this message made
//	body       the rest
//
// The publish script writes previous, own and their lengths; everything before
// them is the head that the publisher passes in.
//
// The body of an invalidation is a version byte and operations up to its end:
//
//	1 remove keys    name, count, keys
//	2 clear regions  name, count, regions
//	3 clear cache    name
//	4 clear all
//
// An echo answers an instance's own probe, on the instance's own channel. It is
// no link of the chain: previous is empty, and own is the position that the probe
// found. Its body is a version byte, the server's history id (empty: unknown), and
// the probe's nonce.
//
// Strings are a uvarint of length and that many bytes; counts are uvarints. A
// notice is outside the chain, carries no positions and is ignored by a version
// that does not know it: the kind is reserved for tools.
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

	// A body beyond these bounds counts as undecodable: what a message costs its
	// receivers is bounded whatever it says. No body of a publisher of this library
	// comes near them. It has at most maxMessageBytes, and an operation, a key or a
	// region takes at least one of them; or it holds one entry that is larger by
	// itself, of at most maxBatchBytes, and the name of its cache.
	maxBodyBytes   = 2 * maxBatchBytes
	maxBodyEntries = maxMessageBytes // operations, keys and regions
)

// instanceID tells instances apart on the channel; it is drawn at random, and another
// one for each subscription.
type instanceID [16]byte

// envelope is a received message, taken apart as far as every version agrees.
type envelope struct {
	kind      byte
	publisher instanceID
	previous  string // "" when the channel had no position
	own       string
	body      string
}

var (
	// errForeign marks bytes that no nearcache wrote: they are ignored.
	errForeign = errors.New("not a nearcache message")

	// errUndecodable marks a message of ours that cannot be understood. It may
	// have invalidated anything, so the receiver clears everything.
	errUndecodable = errors.New("undecodable nearcache message")
)

// appendHead appends the part of the envelope that comes before the positions.
func appendHead(b []byte, kind byte, publisher instanceID) []byte {
	b = append(b, magic...)
	b = append(b, kind)
	return append(b, publisher[:]...)
}

// decodeEnvelope takes a payload apart. Its error is errForeign or wraps
// errUndecodable. Previous and body are pieces of the payload; own is not, since it
// is kept until the next message, and would keep the payload.
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

// bodyReader reads the operations of an invalidation's body one by one. It
// allocates nothing, and what it returns are pieces of the body.
//
// What it has read before it fails may have been applied by then: a body that
// fails clears everything (see errUndecodable), a part of it included.
type bodyReader struct {
	op    byte   // of the operation that next has read
	cache string // what that is about

	left    uint64 // values of the operation that were not read yet
	entries int    // operations and values so far
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

// next reads the next operation, but for its values, and reports whether there is
// one. It skips those values of the operation before it that were not read.
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
		if b.left > uint64(len(b.rest.rest)) { // each takes a byte at least
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

// ok reports whether nothing has failed. If something has, nothing more is read.
func (b *bodyReader) ok() bool {
	if b.rest.err != nil {
		b.left, b.rest.rest = 0, ""
		return false
	}
	return true
}

// err returns why the reading ended early, if it did. It wraps errUndecodable.
func (b *bodyReader) err() error { return b.rest.err }

// decodeEcho returns what an echo's body says. Its error wraps errUndecodable.
func decodeEcho(body string) (history, nonce string, err error) {
	r := reader{rest: body}
	if version := r.byte(); r.err == nil && version != echoVersion {
		return "", "", fmt.Errorf("%w: unknown version of an echo", errUndecodable)
	}
	history, nonce = r.string(), r.string()
	return strings.Clone(history), nonce, r.err // it is kept
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// reader takes values off the front of a body. After the first error every
// value is zero.
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
