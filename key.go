package nearcache

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unsafe"
)

// errForeignKey is the error of a message with a key that the cache cannot read. It clears
// the cache. The error does not show the key.
var errForeignKey = errors.New("a key is none of the cache's key type")

// keyCodec turns keys into their form in messages, and back. Memory is keyed by K itself,
// so a hit does not use it.
type keyCodec[K comparable] struct {
	encode func(K) (string, error)
	decode func(string) (K, error)

	// exact says that every K survives encode and decode, so that nothing has to be
	// checked. It is true for strings and integers, and false for a TextMarshaler, of which
	// it is not known.
	exact bool

	strings bool // K is a string kind, which is encoded as its own bytes
}

// newKeyCodec chooses the codec for K: MarshalText and UnmarshalText if K has both, else
// the bytes of a string kind, else the decimal form of an integer kind.
func newKeyCodec[K comparable]() (keyCodec[K], error) {
	kind := reflect.TypeFor[K]()
	_, marshals := any(new(K)).(encoding.TextMarshaler)
	_, unmarshals := any(new(K)).(encoding.TextUnmarshaler)

	switch {
	case kind.Kind() == reflect.Interface || kind.Kind() == reflect.Pointer:
		// A pointer never survives: decoding makes another one.
	case marshals && unmarshals && !comparesSafely(kind):
		return keyCodec[K]{}, fmt.Errorf("key type %s holds an interface, and comparing those can panic", kind)
	case marshals && unmarshals:
		return keyCodec[K]{encode: encodeText[K], decode: decodeText[K]}, nil
	case kind.Kind() == reflect.String:
		return keyCodec[K]{encode: encodeString[K], decode: decodeString[K], exact: true, strings: true}, nil
	case reflect.Int <= kind.Kind() && kind.Kind() <= reflect.Int64:
		return keyCodec[K]{encode: encodeInt[K], decode: decodeInt[K], exact: true}, nil
	case reflect.Uint <= kind.Kind() && kind.Kind() <= reflect.Uintptr:
		return keyCodec[K]{encode: encodeUint[K], decode: decodeUint[K], exact: true}, nil
	}
	return keyCodec[K]{}, fmt.Errorf("key type %s cannot name items in messages: use a string or integer kind, "+
		"or a type (no pointer) with MarshalText, and UnmarshalText on its pointer", kind)
}

// wire returns key's encoded form, or an error that says why other instances could not
// recognise it.
func (c keyCodec[K]) wire(key K) (string, error) {
	text, _, err := c.name(key)
	return text, err
}

// name returns what wire returns, and also the key that the encoded form decodes to. That
// key equals key. If K has MarshalText, the strings in it are copies, which come free with
// the check.
func (c keyCodec[K]) name(key K) (text string, again K, err error) {
	text, err = c.encode(key)
	if err != nil || c.exact {
		return text, key, err
	}
	again, err = c.decode(text)
	if err != nil {
		return "", key, err
	}
	if again != key {
		return "", key, errors.New("it decodes to another key")
	}
	return text, again, nil
}

// keepable reports whether an item under key may be kept in memory, because an invalidation
// from another instance could find it. It also returns the key, as name does.
func (c keyCodec[K]) keepable(key K) (again K, keepable bool) {
	if c.exact {
		return key, true
	}
	_, again, err := c.name(key)
	return again, err == nil
}

// ownString returns a copy of a key of a string kind. Callers may reuse the memory of their
// keys, as web frameworks do that hand out pieces of a request's buffer.
func ownString[K comparable](key K) K {
	s := strings.Clone(*(*string)(unsafe.Pointer(&key))) // all types of the kind have one memory layout
	return *(*K)(unsafe.Pointer(&s))
}

// bytesOf returns how many bytes key has outside itself, as far as its encoded form shows.
func (c keyCodec[K]) bytesOf(key K) int {
	if c.exact && !c.strings {
		return 0
	}
	text, err := c.encode(key)
	if err != nil {
		return 0 // such a key is never kept
	}
	return len(text)
}

// comparesSafely reports whether == on two values of t can never panic.
func comparesSafely(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Interface:
		return false
	case reflect.Array:
		return comparesSafely(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !comparesSafely(t.Field(i).Type) {
				return false
			}
		}
	}
	return true
}

func encodeText[K comparable](key K) (string, error) {
	text, err := any(&key).(encoding.TextMarshaler).MarshalText()
	return string(text), err
}

// decodeText also decodes what other instances send. So a panic in UnmarshalText must not
// end the subscriber.
func decodeText[K comparable](text string) (key K, err error) {
	defer recovered("UnmarshalText", &err)
	err = any(&key).(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	return key, err
}

func encodeString[K comparable](key K) (string, error) {
	if s, ok := any(key).(string); ok {
		return s, nil
	}
	return reflect.ValueOf(key).String(), nil
}

func decodeString[K comparable](text string) (K, error) {
	var key K
	if p, ok := any(&key).(*string); ok {
		*p = text
	} else {
		reflect.ValueOf(&key).Elem().SetString(text)
	}
	return key, nil
}

func encodeInt[K comparable](key K) (string, error) {
	return strconv.FormatInt(reflect.ValueOf(key).Int(), 10), nil
}

func decodeInt[K comparable](text string) (K, error) {
	var key K
	v := reflect.ValueOf(&key).Elem()
	n, err := strconv.ParseInt(text, 10, v.Type().Bits())
	v.SetInt(n)
	return key, err
}

func encodeUint[K comparable](key K) (string, error) {
	return strconv.FormatUint(reflect.ValueOf(key).Uint(), 10), nil
}

func decodeUint[K comparable](text string) (K, error) {
	var key K
	v := reflect.ValueOf(&key).Elem()
	n, err := strconv.ParseUint(text, 10, v.Type().Bits())
	v.SetUint(n)
	return key, err
}
