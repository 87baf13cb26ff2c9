package nearcache

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// fingerprintOf returns a number that differs between types of values, and between forms of
// a type. It tells a cache's values from others that are stored under its name, by another
// deployment or by another application on the channel. It depends on the type's name and
// its package's path. For JSON it also depends on the exported fields, at any depth. Any
// other Codec handles changes of the form itself, so its type counts instead of the fields.
func fingerprintOf[V any](codec Codec[V]) uint64 {
	h := sha256.New()
	t := reflect.TypeFor[V]()
	if _, isJSON := codec.(jsonCodec[V]); isJSON {
		d := describer{to: h, seen: map[reflect.Type]bool{}}
		d.describe(t)
	} else {
		_, _ = fmt.Fprintf(h, "%s by %s", fullName(t), fullName(reflect.TypeOf(codec)))
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// fullName is the name of a type with the paths of its packages.
func fullName(t reflect.Type) string {
	switch {
	case t.Name() != "":
		return t.PkgPath() + "." + t.Name() // the name of a generic type has the paths of its arguments
	case t.Kind() == reflect.Pointer:
		return "*" + fullName(t.Elem())
	case t.Kind() == reflect.Slice:
		return "[]" + fullName(t.Elem())
	case t.Kind() == reflect.Map:
		return "map[" + fullName(t.Key()) + "]" + fullName(t.Elem())
	}
	return t.String()
}

// describer writes down what the JSON of a type depends on.
type describer struct {
	to   io.Writer
	seen map[reflect.Type]bool // named types that are described, or being described
}

func (d *describer) describe(t reflect.Type) {
	d.write("%s %v", fullName(t), t.Kind())
	if t.Name() != "" {
		if d.seen[t] {
			return
		}
		d.seen[t] = true
	}
	if isOpaque(t) {
		return // its own methods make its JSON
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		d.describe(t.Elem())
	case reflect.Array:
		d.write("%d", t.Len())
		d.describe(t.Elem())
	case reflect.Map:
		d.describe(t.Key())
		d.describe(t.Elem())
	case reflect.Struct:
		d.fields(t)
	}
}

// fields describes the fields that are in the JSON. Their order does not matter.
func (d *describer) fields(t reflect.Type) {
	var fields []reflect.StructField
	for f := range structFields(t) {
		if (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-" {
			fields = append(fields, f)
		}
	}
	slices.SortFunc(fields, func(a, b reflect.StructField) int { return strings.Compare(a.Name, b.Name) })
	d.write("%d fields", len(fields))
	for _, f := range fields {
		d.write("%s %t %q", f.Name, f.Anonymous, f.Tag.Get("json"))
		d.describe(f.Type)
	}
}

// structFields yields the fields of a struct type.
func structFields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

func (d *describer) write(format string, args ...any) { _, _ = fmt.Fprintf(d.to, format+";", args...) }

// isOpaque reports whether a type's own methods encode its values. Then its fields do not
// matter.
func isOpaque(t reflect.Type) bool {
	for _, of := range []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler]()} {
		if t.Kind() != reflect.Interface && (t.Implements(of) || reflect.PointerTo(t).Implements(of)) {
			return true
		}
	}
	_, isProto := reflect.PointerTo(t).MethodByName("ProtoReflect")
	return isProto
}
