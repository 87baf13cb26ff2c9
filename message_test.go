package nearcache

import (
	"encoding/hex"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nearcache/nearcache/internal/messagetest"
	"github.com/nearcache/nearcache/internal/transport"
)

var (
	testPublisher = instanceID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	positionA     = strings.Repeat("a", positionLength)
	positionB     = strings.Repeat("b", positionLength)
	positionC     = strings.Repeat("c", positionLength)
)

// readOperations returns all operations of a body, as bodyReader reads them.
func readOperations(body string) (ops []messagetest.Operation, err error) {
	r := readBody(body)
	for r.next() {
		o := messagetest.Operation{Op: r.op, Cache: r.cache}
		for v, ok := r.value(); ok; v, ok = r.value() {
			o.Values = append(o.Values, v)
		}
		ops = append(ops, o)
	}
	return ops, r.err()
}

// parts encodes all that b holds, and leaves it empty.
func (b *batch) parts(limit, most int) (parts []part) {
	for !b.empty() {
		p := b.part(limit, most)
		b.drop(p)
		parts = append(parts, p)
	}
	return parts
}

func (b *batch) bodies(limit, most int) (bodies []string) {
	for _, p := range b.parts(limit, most) {
		bodies = append(bodies, p.body)
	}
	return bodies
}

// body encodes one batch that fits one message.
func body(invs ...invalidation) string {
	var b batch
	for _, inv := range invs {
		b.add(inv)
	}
	bodies := b.bodies(maxMessageBytes, math.MaxInt)
	if len(bodies) != 1 {
		panic("not one body")
	}
	return bodies[0]
}

// The golden bytes are pinned: a rolling deployment runs two versions on one
// channel. A failure here means that the wire format changed.
func TestGoldenMessages(t *testing.T) {
	tests := []struct {
		file    string
		payload string
		ops     []messagetest.Operation
	}{
		{
			file:    "remove-keys",
			payload: messagetest.Message(testPublisher, positionA, positionB, body(invalidation{cache: "products", keys: []string{"42"}})),
			ops:     []messagetest.Operation{{Op: messagetest.RemoveKeys, Cache: "products", Values: []string{"42"}}},
		}, {
			file:    "remove-key-of-any-bytes",
			payload: messagetest.Message(testPublisher, positionA, positionB, body(invalidation{cache: "x", keys: []string{"\xff\x00"}})),
			ops:     []messagetest.Operation{{Op: messagetest.RemoveKeys, Cache: "x", Values: []string{"\xff\x00"}}},
		}, {
			file:    "clear-region-first-on-the-channel",
			payload: messagetest.Message(testPublisher, "", positionB, body(invalidation{cache: "products", regions: []string{"books"}})),
			ops:     []messagetest.Operation{{Op: messagetest.ClearRegions, Cache: "products", Values: []string{"books"}}},
		}, {
			file:    "clear-cache",
			payload: messagetest.Message(testPublisher, positionA, positionB, body(invalidation{cache: "products", clear: true})),
			ops:     []messagetest.Operation{{Op: messagetest.ClearCache, Cache: "products"}},
		}, {
			file:    "clear-all",
			payload: messagetest.Message(testPublisher, positionA, positionB, body(invalidation{all: true})),
			ops:     []messagetest.Operation{{Op: messagetest.ClearAll}},
		}, {
			file: "keys-and-regions",
			payload: messagetest.Message(testPublisher, positionA, positionB,
				body(invalidation{cache: "p", keys: []string{"1"}}, invalidation{cache: "p", regions: []string{""}})),
			ops: []messagetest.Operation{
				{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"1"}},
				{Op: messagetest.ClearRegions, Cache: "p", Values: []string{""}},
			},
		},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			requireGolden(t, test.file, test.payload)
			e, err := decodeEnvelope(test.payload)
			require.NoError(t, err)
			require.Equal(t, testPublisher, e.publisher)
			require.Equal(t, positionB, e.own)
			require.Equal(t, messagetest.Head(messagetest.KindInvalidation, testPublisher), head(kindInvalidation, testPublisher))
			require.Equal(t, e.body, messagetest.Body(test.ops...))
			ops, err := messagetest.DecodeBody(e.body)
			require.NoError(t, err)
			require.Equal(t, test.ops, ops)
			read, err := readOperations(e.body)
			require.NoError(t, err)
			require.Equal(t, test.ops, read)
		})
	}
}

func requireGolden(t *testing.T, file, payload string) {
	t.Helper()
	golden, err := os.ReadFile(filepath.Join("testdata", "messages", file+".hex"))
	require.NoError(t, err, "want: %x", payload)
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(golden)), ""))
	require.NoError(t, err)
	require.Equal(t, string(want), payload)
}

func TestGoldenEchoes(t *testing.T) {
	for file, history := range map[string]string{"echo": positionC, "echo-without-history": ""} {
		t.Run(file, func(t *testing.T) {
			payload := messagetest.Echo(testPublisher, positionA, history, "sixteen bytes ok")
			requireGolden(t, file, payload)
			e, err := decodeEnvelope(payload)
			require.NoError(t, err)
			require.EqualValues(t, kindEcho, e.kind)
			require.Equal(t, messagetest.Head(messagetest.KindEcho, testPublisher), head(kindEcho, testPublisher))
			require.Equal(t, testPublisher, e.publisher)
			require.Empty(t, e.previous)
			require.Equal(t, positionA, e.own)
			got, nonce, err := decodeEcho(e.body)
			require.NoError(t, err)
			require.Equal(t, history, got)
			require.Equal(t, "sixteen bytes ok", nonce)
			for n := range len(e.body) {
				_, _, err := decodeEcho(e.body[:n])
				require.ErrorIs(t, err, errUndecodable, "cut at %d", n)
			}
			_, _, err = decodeEcho("\x02" + e.body[1:])
			require.ErrorIs(t, err, errUndecodable)
		})
	}
}

func TestDecodeEnvelope(t *testing.T) {
	whole := messagetest.Message(testPublisher, positionA, positionB, "body")
	for n := range len(whole) - len("body") {
		_, err := decodeEnvelope(whole[:n])
		if n < len(magic) {
			require.ErrorIs(t, err, errForeign, "cut at %d", n)
		} else {
			require.ErrorIs(t, err, errUndecodable, "cut at %d", n)
		}
	}
	_, err := decodeEnvelope("hello, this is somebody else's channel")
	require.ErrorIs(t, err, errForeign)

	_, err = decodeEnvelope(messagetest.Message(testPublisher, positionA, "", ""))
	require.ErrorIs(t, err, errUndecodable, "a message without its own position")

	_, err = decodeEnvelope(messagetest.Head('X', testPublisher))
	require.ErrorIs(t, err, errUndecodable, "a kind that does not exist")

	notice, err := decodeEnvelope(messagetest.Head(messagetest.KindNotice, testPublisher) + "anything")
	require.NoError(t, err)
	require.EqualValues(t, kindNotice, notice.kind)
}

func TestDecodeBodyRejects(t *testing.T) {
	tests := []struct{ name, body string }{
		{"nothing", ""},
		{"another version", "\x02"},
		{"an unknown operation", "\x01\x09"},
		{"an unknown operation after a known one", "\x01\x04\x09"},
		{"a cut name", "\x01\x03\x05abc"},
		{"a cut length", "\x01\x03\x80"},
		{"a length past 64 bits", "\x01\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"},
		{"a count larger than the body", "\x01\x01\x01p\xff\xff\xff\x7f"},
		{"a cut list", "\x01\x01\x01p\x02\x01a"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := messagetest.DecodeBody(test.body)
			require.Error(t, err)
			_, err = readOperations(test.body)
			require.ErrorIs(t, err, errUndecodable)
		})
	}
}

// Whatever a batch holds comes out of its bodies, and no body exceeds the limit
// but for one entry that does so by itself.
func TestBodiesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b batch
		want := map[string]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "entries") {
			cache := rapid.SampledFrom([]string{"p", "a-longer-name"}).Draw(t, "cache")
			value := string(rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "value"))
			if rapid.Bool().Draw(t, "region") {
				b.add(invalidation{cache: cache, regions: []string{value}})
				want["region "+cache+" "+value] = true
			} else {
				b.add(invalidation{cache: cache, keys: []string{value}})
				want["key "+cache+" "+value] = true
			}
		}
		limit := rapid.IntRange(1, 300).Draw(t, "limit")
		got := map[string]bool{}
		for _, p := range b.parts(limit, math.MaxInt) {
			body := p.body
			ops, err := messagetest.DecodeBody(body)
			if err != nil {
				t.Fatal(err)
			}
			if changes := changesOf(ops); !reflect.DeepEqual(changes, p.changes) {
				t.Fatalf("a body says %v, and what it changes is %v", changes, p.changes)
			}
			values := 0
			for _, o := range ops {
				kind := "key "
				if o.Op == messagetest.ClearRegions {
					kind = "region "
				}
				for _, v := range o.Values {
					got[kind+o.Cache+" "+v] = true
					values++
				}
			}
			if len(body) > limit && values > 1 {
				t.Fatalf("a body of %d entries has %d bytes, limit %d", values, len(body), limit)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		if b.bytes != 0 {
			t.Fatalf("%d bytes are left of nothing", b.bytes)
		}
		for entry := range want {
			if !got[entry] {
				t.Fatalf("%q is lost", entry)
			}
		}
	})
}

// changesOf returns what operations mean for the values in Redis.
func changesOf(ops []messagetest.Operation) (changes []transport.Change) {
	for _, o := range ops {
		changes = append(changes, transport.Change{
			Cache: o.Cache, Clear: o.Op == messagetest.ClearCache, All: o.Op == messagetest.ClearAll,
			Keys: valuesOf(o, messagetest.RemoveKeys), Regions: valuesOf(o, messagetest.ClearRegions),
		})
	}
	return changes
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "messages", "*.hex"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no golden messages: %v", err)
	}
	for _, file := range files {
		golden, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		message, err := hex.DecodeString(strings.Join(strings.Fields(string(golden)), ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(message))
	}
	f.Fuzz(func(t *testing.T, message string) {
		e, err := decodeEnvelope(message)
		if err != nil || e.kind == kindNotice {
			return
		}
		if e.kind == kindEcho {
			if history, nonce, err := decodeEcho(e.body); err == nil && len(history)+len(nonce) > len(e.body) {
				t.Fatalf("%x has more in it than there is", message)
			}
			return
		}
		if again := messagetest.Message(e.publisher, e.previous, e.own, e.body); again != message {
			t.Fatalf("the envelope of %x reads back as %x", message, again)
		}
		ops, err := messagetest.DecodeBody(e.body)
		read, readErr := readOperations(e.body)
		if (err == nil) != (readErr == nil) || err == nil && !reflect.DeepEqual(ops, read) {
			t.Fatalf("%x is %v (%v), and was read as %v (%v)", e.body, ops, err, read, readErr)
		}
		if err != nil {
			return
		}
		// What was understood survives being written and read once more.
		var b batch
		for _, o := range ops {
			b.add(invalidation{
				all: o.Op == messagetest.ClearAll, cache: o.Cache, clear: o.Op == messagetest.ClearCache,
				keys:    valuesOf(o, messagetest.RemoveKeys),
				regions: valuesOf(o, messagetest.ClearRegions),
			})
		}
		for _, body := range b.bodies(maxMessageBytes, math.MaxInt) {
			if _, err := messagetest.DecodeBody(body); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func valuesOf(o messagetest.Operation, op byte) []string {
	if o.Op != op {
		return nil
	}
	return slices.Clone(o.Values)
}
