package nearcache

import (
	"reflect"
	"sync/atomic"
	"unsafe"
)

// cellKind says how the value of an entry is read and replaced in place. Readers take no
// lock. So a value can be replaced in place only if the processor reads and writes it in
// one step: if it is one pointer, or one number of eight bytes. For values of other types,
// a new entry replaces the old one, which readers see in one step.
type cellKind int8

const (
	fixed cellKind = iota
	pointerWord
	numberWord
)

// cellKindOf returns the kind for values of type V.
func cellKindOf[V any]() cellKind {
	switch t := reflect.TypeFor[V](); t.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Chan, reflect.Func, reflect.UnsafePointer:
		return pointerWord
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64, reflect.Uintptr, reflect.Float64:
		if t.Align() == 8 && t.Size() == 8 {
			return numberWord
		}
	}
	return fixed
}

// loadValue returns the value at v, in a published entry.
func loadValue[V any](p cellKind, v *V) V {
	switch p {
	case pointerWord:
		word := atomic.LoadPointer((*unsafe.Pointer)(unsafe.Pointer(v)))
		return *(*V)(unsafe.Pointer(&word))
	case numberWord:
		word := atomic.LoadUint64((*uint64)(unsafe.Pointer(v)))
		return *(*V)(unsafe.Pointer(&word))
	}
	return *v
}

// storeValue replaces the value at v, in a published entry whose kind is not fixed.
func storeValue[V any](p cellKind, v *V, value V) {
	if p == pointerWord {
		atomic.StorePointer((*unsafe.Pointer)(unsafe.Pointer(v)), *(*unsafe.Pointer)(unsafe.Pointer(&value)))
	} else {
		atomic.StoreUint64((*uint64)(unsafe.Pointer(v)), *(*uint64)(unsafe.Pointer(&value)))
	}
}
