// Package messagetest states the wire format a second time, for tests. It shares no code
// with package nearcache, whose file message.go describes the format: if one of the two
// changes alone, tests fail.
package messagetest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What messages are made of. The parts of a message are described in message.go.
const (
	Magic       = "NRC\x01"
	BodyVersion = 1
	EchoVersion = 1

	KindInvalidation = 'I'
	KindEcho         = 'E'
	KindNotice       = 'N'

	RemoveKeys   = 1
	ClearRegions = 2
	ClearCache   = 3
	ClearAll     = 4
)

// Operation is one entry of an invalidation's body.
type Operation struct {
	Op     byte     // RemoveKeys, ClearRegions, ClearCache or ClearAll
	Cache  string   // its name; empty with ClearAll
	Values []string // keys or regions
}

// Head returns what a message begins with, up to the positions.
func Head(kind byte, publisher [16]byte) string {
	return Magic + string([]byte{kind}) + string(publisher[:])
}

// Message returns what the publish script publishes: an invalidation.
func Message(publisher [16]byte, previous, own, body string) string {
	return Head(KindInvalidation, publisher) + position(previous) + position(own) + body
}

// Echo returns what the probe script publishes.
func Echo(publisher [16]byte, at, history, nonce string) string {
	b := []byte(Head(KindEcho, publisher) + position("") + position(at))
	b = append(b, EchoVersion)
	return string(appendString(appendString(b, history), nonce))
}

// position encodes a position in an envelope. An empty one says that there is none.
func position(p string) string { return string([]byte{byte(len(p))}) + p }

// Body encodes operations as they are, one after another.
func Body(operations ...Operation) string {
	b := []byte{BodyVersion}
	for _, o := range operations {
		b = append(b, o.Op)
		if o.Op != ClearAll {
			b = appendString(b, o.Cache)
		}
		if o.Op == RemoveKeys || o.Op == ClearRegions {
			b = binary.AppendUvarint(b, uint64(len(o.Values)))
			for _, v := range o.Values {
				b = appendString(b, v)
			}
		}
	}
	return string(b)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// errCut is why a body that ends too early is not decoded.
var errCut = errors.New("messagetest: the body ends inside an operation")

// DecodeBody returns all operations of a body. It knows no bound on how large a body is.
func DecodeBody(body string) ([]Operation, error) {
	if body == "" || body[0] != BodyVersion {
		return nil, errors.New("messagetest: unknown version of a body")
	}
	var operations []Operation
	d := decoder{rest: []byte(body[1:])}
	for len(d.rest) > 0 {
		o := Operation{Op: d.rest[0]}
		d.rest = d.rest[1:]
		if o.Op < RemoveKeys || o.Op > ClearAll {
			return nil, fmt.Errorf("messagetest: unknown operation %d", o.Op)
		}
		if o.Op != ClearAll {
			o.Cache = d.string()
		}
		if o.Op == RemoveKeys || o.Op == ClearRegions {
			for n := d.uvarint(); n > 0 && !d.cut; n-- {
				o.Values = append(o.Values, d.string())
			}
		}
		if d.cut {
			return nil, errCut
		}
		operations = append(operations, o)
	}
	return operations, nil
}

// decoder takes numbers and strings off the front of a body. Once one is cut off, all
// that follow are zero.
type decoder struct {
	rest []byte
	cut  bool
}

func (d *decoder) uvarint() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 { // it is cut off, or has more than 64 bits
		d.cut, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) string() string {
	n := d.uvarint()
	if d.cut || n > uint64(len(d.rest)) {
		d.cut, d.rest = true, nil
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}
