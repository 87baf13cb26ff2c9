package nearcache

import (
	"fmt"
	"log/slog"
	"math"
	"math/cmplx"
	"reflect"
	"strings"
	"unsafe"
)

const (
	// mostChecked bounds the bytes of a value that is checked, so that the check takes
	// little time.
	mostChecked = 1 << 20

	// mostCompared bounds how many parts of a value are compared, and mostNested how deep
	// they are nested.
	mostCompared = 100_000
	mostNested   = 200
)

// checkStored decodes a value that was stored, as another instance will, and logs a warning
// if it is not the same. It is called for the first value of a cache, after the callers
// have got it.
func (s *shared[K, V]) checkStored(value V, bytes []byte) {
	l, data, err := readLabel(bytes)
	if err != nil {
		return // impossible: it was written here
	}
	field, difference := reflect.TypeFor[V]().String(), "it cannot be decoded"
	if again, err := decodeValue(&s.options, l, data); err == nil {
		field, difference = compareValues(value, again)
	}
	if difference == "" {
		return
	}
	s.backplane.log(slog.LevelWarn, "nearcache: a value is not the same when it comes back from the shared level; instances that read it there "+
		"have another one than the instance that loaded it (change the type, or set SharedOptions.Codec)",
		Event{}, "cache", s.cache, "field", field, "difference", difference)
}

// compareValues finds the first difference between a value and its decoded copy. It returns
// the field and the difference, or "" if there is none. The texts show types, but no part
// of the values, not even keys of maps.
//
// Some differences do not count: that of an empty slice or map and nil, and that of two
// NaNs. Types that encode themselves, such as time.Time, differ only if nothing comes back.
// Other goroutines have the value by then. So unexported fields of structs with a lock,
// which may change, are skipped.
func compareValues[V any](value, again V) (field, difference string) {
	defer func() {
		if recover() != nil { // an unforeseen kind of value: nothing is known
			field, difference = "", ""
		}
	}()
	c := comparison{left: mostCompared, seen: map[comparedPair]bool{}}
	name := strings.TrimLeft(reflect.TypeFor[V]().String(), "*")
	if name = name[strings.LastIndex(name, ".")+1:]; strings.ContainsAny(name, "[]{}() ") {
		name = "value"
	}
	// Through pointers, so that values of interface types keep that type.
	if c.same(reflect.ValueOf(&value).Elem(), reflect.ValueOf(&again).Elem(), name, 0) {
		return "", ""
	}
	return c.field, c.difference
}

// comparison is a comparison of a value with its decoded copy.
type comparison struct {
	left              int // how many parts may still be compared
	seen              map[comparedPair]bool
	field, difference string // the first difference
}

// comparedPair is two pointers that are being compared, or were: values may have cycles.
type comparedPair struct{ value, again unsafe.Pointer }

func (c *comparison) differ(path, difference string) bool {
	c.field, c.difference = path, difference
	return false
}

// same compares what is at path. Beyond its bounds, everything counts as the same.
func (c *comparison) same(value, again reflect.Value, path string, depth int) bool {
	if c.left--; c.left < 0 || depth > mostNested {
		return true
	}
	if !value.IsValid() || !again.IsValid() {
		return value.IsValid() == again.IsValid() || c.differ(path, "it does not come back")
	}
	t := value.Type()
	switch {
	case t != again.Type():
		return c.differ(path, fmt.Sprintf("%v became %v", t, again.Type()))
	case isOpaque(t) && t.Kind() != reflect.Pointer:
		return value.IsZero() || !again.IsZero() || c.differ(path, fmt.Sprintf("%v, which encodes itself, comes back empty", t))
	}
	switch t.Kind() {
	case reflect.Interface:
		return c.sameElements(value, again, path, depth)
	case reflect.Pointer:
		pair := comparedPair{value.UnsafePointer(), again.UnsafePointer()}
		if pair.value == pair.again || c.seen[pair] {
			return true
		}
		c.seen[pair] = true
		return c.sameElements(value, again, path, depth)
	case reflect.Struct:
		return c.sameFields(value, again, path, depth)
	case reflect.Slice, reflect.Array:
		return c.sameLists(value, again, path, depth)
	case reflect.Map:
		return c.sameMaps(value, again, path, depth)
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return value.IsNil() == again.IsNil() || c.differ(path, fmt.Sprintf("%v does not come back", t))
	}
	return sameScalars(value, again) || c.differ(path, changed(again))
}

// changed says how a scalar has changed.
func changed(again reflect.Value) string {
	if again.IsZero() {
		return fmt.Sprintf("%v comes back empty", again.Type())
	}
	return fmt.Sprintf("%v comes back with another value", again.Type())
}

func sameScalars(value, again reflect.Value) bool {
	switch value.Kind() {
	case reflect.Bool:
		return value.Bool() == again.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return value.Int() == again.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return value.Uint() == again.Uint()
	case reflect.Float32, reflect.Float64:
		a, b := value.Float(), again.Float()
		return a == b || math.IsNaN(a) && math.IsNaN(b)
	case reflect.Complex64, reflect.Complex128:
		a, b := value.Complex(), again.Complex()
		return a == b || cmplx.IsNaN(a) && cmplx.IsNaN(b)
	case reflect.String:
		return value.String() == again.String()
	}
	return true
}

// sameElements compares what two pointers or interfaces refer to.
func (c *comparison) sameElements(value, again reflect.Value, path string, depth int) bool {
	if value.IsNil() || again.IsNil() {
		return value.IsNil() == again.IsNil() || c.differ(path, fmt.Sprintf("%v does not come back", value.Type()))
	}
	return c.same(value.Elem(), again.Elem(), path, depth+1)
}

func (c *comparison) sameFields(value, again reflect.Value, path string, depth int) bool {
	locked := hasLock(value.Type())
	for i := range value.NumField() {
		f := value.Type().Field(i)
		if f.Name == "_" || !f.IsExported() && (locked || isLock(f.Type)) {
			continue
		}
		at := path + "." + f.Name
		if c.same(value.Field(i), again.Field(i), at, depth+1) {
			continue
		}
		if !f.IsExported() && !f.Anonymous {
			return c.differ(at, "unexported: it does not come back")
		}
		return false
	}
	return true
}

// hasLock reports whether a struct type has a field from sync or sync/atomic.
func hasLock(t reflect.Type) bool {
	for i := range t.NumField() {
		if isLock(t.Field(i).Type) {
			return true
		}
	}
	return false
}

func isLock(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath() == "sync" || t.PkgPath() == "sync/atomic"
}

func (c *comparison) sameLists(value, again reflect.Value, path string, depth int) bool {
	if value.Len() != again.Len() {
		return c.differ(path, fmt.Sprintf("%v comes back with another length", value.Type()))
	}
	for i := 0; i < value.Len() && c.left > 0; i++ {
		if !c.same(value.Index(i), again.Index(i), path+"[]", depth+1) {
			return false
		}
	}
	return true
}

func (c *comparison) sameMaps(value, again reflect.Value, path string, depth int) bool {
	if value.Len() != again.Len() {
		return c.differ(path, fmt.Sprintf("%v comes back with another length", value.Type()))
	}
	pair := comparedPair{value.UnsafePointer(), again.UnsafePointer()}
	if value.IsNil() || c.seen[pair] {
		return true
	}
	c.seen[pair] = true
	for at := value.MapRange(); at.Next() && c.left > 0; {
		element := again.MapIndex(at.Key())
		if !element.IsValid() {
			if hasNaN(at.Key()) {
				continue // no map look-up finds it
			}
			return c.differ(path, fmt.Sprintf("a key of %v does not come back as it was", value.Type()))
		}
		if !c.same(at.Value(), element, path+"[]", depth+1) {
			return false
		}
	}
	return true
}

// hasNaN reports whether a map's key does not equal itself, or may not.
func hasNaN(key reflect.Value) bool {
	switch key.Kind() {
	case reflect.Interface:
		return !key.IsNil() && hasNaN(key.Elem())
	case reflect.Array, reflect.Struct, reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return !key.Comparable() || !key.Equal(key)
	}
	return false
}
