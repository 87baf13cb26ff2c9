package nearcache

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var writeValues = flag.Bool("write-values", false, "write the golden bytes of values again")

// goldenValues are values as they stand in Redis. A rolling deployment runs two
// versions of this library on one Redis.
func goldenValues() map[string]label {
	plain := label{
		id: "0123456789abcdef", epoch: "fedcba9876543210", count: 1_732_608_000_000_000,
		loaded: time.UnixMilli(1_732_608_000_123), life: 5 * time.Minute, version: 7, kind: 0x0123456789abcdef,
	}
	notFound, packed := plain, plain
	notFound.notFound, packed.packed = true, true
	return map[string]label{"plain": plain, "not-found": notFound, "compressed": packed}
}

func TestGoldenValues(t *testing.T) {
	for name, l := range goldenValues() {
		t.Run(name, func(t *testing.T) {
			data := []byte(`{"name":"golden"}`)
			switch {
			case l.notFound:
				data = nil
			case l.packed:
				data = s2.Encode(nil, data)
			}
			got := append(l.append(nil), data...)
			file := filepath.Join("testdata", "values", name+".hex")
			if *writeValues {
				require.NoError(t, os.WriteFile(file, []byte(hex.EncodeToString(got)+"\n"), 0o644))
			}
			golden, err := os.ReadFile(file)
			require.NoError(t, err)
			want, err := hex.DecodeString(strings.Join(strings.Fields(string(golden)), ""))
			require.NoError(t, err)
			if !l.packed { // how it is compressed may change, and what that means may not
				require.Equal(t, want, got)
			}
			read, rest, err := readLabel(want)
			require.NoError(t, err)
			require.Equal(t, l, read)
			if l.notFound {
				return
			}
			o := &SharedOptions[map[string]string]{Version: 7, Codec: jsonCodec[map[string]string]{}, MaxValueBytes: 100}
			value, err := decodeValue(o, read, rest)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"name": "golden"}, value)
		})
	}
}

// Whatever is encoded comes back.
func TestValuesComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &SharedOptions[[]byte]{
			Codec: jsonCodec[[]byte]{}, MaxValueBytes: math.MaxInt,
			CompressOver: rapid.IntRange(0, 100).Draw(t, "compress over"), Version: rapid.Uint32().Draw(t, "version"),
		}
		l := label{
			id:     string(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id")),
			epoch:  string(rapid.SliceOfN(rapid.Byte(), 0, 16).Draw(t, "epoch")),
			count:  rapid.Uint64().Draw(t, "count"),
			kind:   rapid.Uint64().Draw(t, "kind"),
			loaded: time.UnixMilli(rapid.Int64Range(0, 1<<50).Draw(t, "loaded")),
			life:   time.Duration(rapid.Int64Range(0, int64(mostSharedTTL/time.Millisecond)).Draw(t, "life")) * time.Millisecond,
		}
		value := bytes.Repeat(rapid.SliceOf(rapid.Byte()).Draw(t, "value"), rapid.IntRange(0, 50).Draw(t, "times"))
		encoded, err := encodeValue(o, l, value)
		require.NoError(t, err)
		read, rest, err := readLabel(encoded)
		require.NoError(t, err)
		l.version, l.packed = o.Version, read.packed
		require.Equal(t, l, read)
		got, err := decodeValue(o, read, rest)
		require.NoError(t, err)
		require.True(t, bytes.Equal(value, got))
	})
}

func TestValuesThatAreRefused(t *testing.T) {
	l := label{id: "0123456789abcdef"}
	o := &SharedOptions[string]{Codec: jsonCodec[string]{}, MaxValueBytes: 10}
	encoded, err := encodeValue(o, l, "12345678")
	require.NoError(t, err)
	require.NotNil(t, encoded)
	encoded, err = encodeValue(o, l, "123456789")
	require.NoError(t, err)
	require.Nil(t, encoded, "it is too large")

	for name, codec := range map[string]Codec[string]{
		"errors": brokenCodec{}, "panics": brokenCodec{panics: true},
	} {
		o := &SharedOptions[string]{Codec: codec, MaxValueBytes: 10}
		_, err := encodeValue(o, l, "")
		assert.Error(t, err, name)
		_, err = decodeValue(o, l, nil)
		assert.Error(t, err, name)
	}
	l.packed = true
	for _, data := range [][]byte{nil, {0xff}, []byte("hello"), append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, 0)} {
		_, err := decodeValue(o, l, data)
		assert.Error(t, err)
	}
	l.packed, l.version = false, 1
	_, err = decodeValue(o, l, []byte(`"x"`))
	require.ErrorIs(t, err, errOtherVersion)
}

// bytesCodec takes bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(b []byte) ([]byte, error)   { return b, nil }
func (bytesCodec) Unmarshal(b []byte) ([]byte, error) { return b, nil }

type brokenCodec struct{ panics bool }

func (b brokenCodec) Marshal(string) ([]byte, error) { return nil, b.fail() }

func (b brokenCodec) Unmarshal([]byte) (string, error) { return "", b.fail() }

func (b brokenCodec) fail() error {
	if b.panics {
		panic("oh")
	}
	return errors.New("no")
}

// FuzzReadValue reads what may be in Redis: it must not panic, nor allocate more than what
// is unpacked and what the codec, here that of bytes, makes of it.
func FuzzReadValue(f *testing.F) {
	for _, l := range goldenValues() {
		for _, claimed := range []uint64{1 << 20, 1<<20 + 1, 256 << 20, 1<<32 - 1, 1 << 32} {
			f.Add(append(binary.AppendUvarint(l.append(nil), claimed), " \xff\xff\xff"...))
		}
		f.Add(append(l.append(nil), `{"name":"golden"}`...))
		f.Add(append(l.append(nil), s2.Encode(nil, []byte(`"golden"`))...))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		l, rest, err := readLabel(value)
		if err != nil {
			return
		}
		require.Len(t, l.id, 16)
		require.LessOrEqual(t, len(rest), len(value))
		const most = 1 << 20
		o := &SharedOptions[[]byte]{Codec: bytesCodec{}, Version: l.version, MaxValueBytes: most}
		require.LessOrEqual(t, allocated(func() { _, _ = decodeValue(o, l, rest) }), uint64(most+64<<10))
		_, _ = decodeValue(&SharedOptions[any]{Codec: jsonCodec[any]{}, Version: l.version, MaxValueBytes: most}, l, rest)
		again, _, err := readLabel(l.append(nil))
		require.NoError(t, err)
		require.Equal(t, l, again)
	})
}
