package nearcache

import (
	"fmt"
	"reflect"
	"strings"
)

// KeysError says for which keys GetMany has no item, and why. If there are several causes,
// the error of GetMany wraps a KeysError for each, by its method Unwrap() []error.
type KeysError[K comparable] struct {
	Cache string // the cache's name
	Keys  []K    // in the order in which they were asked for
	Err   error  // the loader's own error, or the context's
}

// Error names the first of the keys, and says how many more there are.
func (e *KeysError[K]) Error() string {
	return notLoaded(e.Cache, e.Keys[:min(len(e.Keys), mostNamed)], len(e.Keys), e.Err.Error())
}

// Unwrap returns Err.
func (e *KeysError[K]) Unwrap() error { return e.Err }

const (
	// mostNamed bounds how many keys, and how many causes, an error's text names.
	mostNamed = 10

	// mostAlike bounds how many errors of the same text and root an error is compared with.
	mostAlike = 16

	// deepest bounds how deep wrapped errors are followed.
	deepest = 32
)

// keyFailures collects which keys have failed and why, in one KeysError for each cause.
//
// Errors of one cause are the same for errors.Is and errors.As. They are equal, or they
// wrap the same errors in the same way, as those of one fmt.Errorf in a loader do. To have
// the same text is not enough. Two errors that wrap the same errors can no longer be told
// apart by their addresses. We accept this, because a loader that wraps its errors makes a
// new one for each key.
type keyFailures[K comparable] struct {
	all   []*KeysError[K]
	alike map[likeness][]*KeysError[K]
}

// likeness is what errors of one cause have in common, and few others do. It saves
// comparing a million errors with each other.
type likeness struct {
	text string
	root error // the innermost error, if it is comparable
}

func (c *keyFailures[K]) add(key K, err error) {
	like := likeness{text: err.Error(), root: rootOf(err)}
	alike := c.alike[like]
	for _, f := range alike {
		if sameCause(reflect.ValueOf(f.Err), reflect.ValueOf(err), deepest) {
			f.Keys = append(f.Keys, key)
			return
		}
	}
	f := &KeysError[K]{Keys: []K{key}, Err: err}
	c.all = append(c.all, f)
	if len(alike) < mostAlike {
		if c.alike == nil {
			c.alike = map[likeness][]*KeysError[K]{}
		}
		c.alike[like] = append(alike, f)
	}
}

// err returns one error for all, or nil if there are none.
func (c *keyFailures[K]) err(cache string) error {
	for _, f := range c.all {
		f.Cache = cache
	}
	switch len(c.all) {
	case 0:
		return nil
	case 1:
		return c.all[0]
	}
	return keysErrors[K](c.all)
}

// rootOf returns the innermost error that err wraps, following the first where there are
// several. It returns nil if that error is not comparable.
func rootOf(err error) error {
	for range deepest {
		var inner error
		switch w := err.(type) {
		case interface{ Unwrap() error }:
			inner = w.Unwrap()
		case interface{ Unwrap() []error }:
			if all := w.Unwrap(); len(all) > 0 {
				inner = all[0]
			}
		}
		if inner == nil {
			break
		}
		err = inner
	}
	if !reflect.ValueOf(err).Comparable() {
		return nil
	}
	return err
}

var (
	wrapsOne  = reflect.TypeFor[interface{ Unwrap() error }]()
	wrapsMany = reflect.TypeFor[interface{ Unwrap() []error }]()
)

// sameCause reports whether two errors, or parts of errors, are the same. Pointers to what
// wraps nothing are the same if they are equal: such errors are told apart by their
// addresses.
func sameCause(a, b reflect.Value, depth int) bool {
	if depth == 0 || !a.IsValid() || !b.IsValid() || a.Type() != b.Type() {
		return a.IsValid() == b.IsValid() && !a.IsValid()
	}
	switch a.Kind() {
	case reflect.Interface:
		return sameCause(a.Elem(), b.Elem(), depth-1)
	case reflect.Pointer:
		wraps := a.Type().Implements(wrapsOne) || a.Type().Implements(wrapsMany)
		return a.Pointer() == b.Pointer() || wraps && sameCause(a.Elem(), b.Elem(), depth-1)
	case reflect.Struct:
		for i := range a.NumField() {
			if !sameCause(a.Field(i), b.Field(i), depth-1) {
				return false
			}
		}
		return true
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !sameCause(a.Index(i), b.Index(i), depth-1) {
				return false
			}
		}
		return true
	case reflect.Map, reflect.Func:
		return a.UnsafePointer() == b.UnsafePointer()
	}
	return a.Equal(b)
}

// keysErrors is one error for several causes.
type keysErrors[K comparable] []*KeysError[K]

func (e keysErrors[K]) Unwrap() []error {
	all := make([]error, len(e))
	for i, f := range e {
		all[i] = f
	}
	return all
}

// Error returns a line for each of the first texts, and says how many more keys there are.
// Causes with the same text share a line.
func (e keysErrors[K]) Error() string {
	type line struct {
		text  string
		keys  []K
		count int
	}
	var lines []*line
	of := map[string]*line{}
	more := 0
	for _, f := range e {
		text := f.Err.Error()
		l := of[text]
		if l == nil && len(lines) < mostNamed {
			l = &line{text: text}
			lines = append(lines, l)
			of[text] = l
		}
		if l == nil {
			more += len(f.Keys)
			continue
		}
		l.count += len(f.Keys)
		l.keys = append(l.keys, f.Keys[:min(len(f.Keys), mostNamed-len(l.keys))]...)
	}
	texts := make([]string, 0, mostNamed+1)
	for _, l := range lines {
		texts = append(texts, notLoaded(e[0].Cache, l.keys, l.count, l.text))
	}
	if more > 0 {
		texts = append(texts, fmt.Sprintf("nearcache: cache %q: not loaded: %d more, for other reasons", e[0].Cache, more))
	}
	return strings.Join(texts, "\n")
}

// notLoaded is the text of an error about count keys, of which it names some.
func notLoaded[K comparable](cache string, named []K, count int, cause string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "nearcache: cache %q: not loaded: ", cache)
	for i, key := range named {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, key)
	}
	if more := count - len(named); more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	fmt.Fprintf(&b, ": %s", cause)
	return b.String()
}
