package nearcache

import (
	"reflect"
	"sync/atomic"
	"unsafe"
)

// place says how a held value is read and replaced where it lies. Readers take no
// lock, so only what the processor reads and writes in one go can be replaced under
// their eyes: a value that is one pointer, or one number of eight bytes. Of other
// types a new entry takes the old one's place, for readers to find in one go.
type cellKind int8

const (
	fixed cellKind = iota
	pointerWord
	numberWord
)

// placeOf returns the place of values of type V.
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

// load returns the value at v, which lies in a published entry.
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

// store replaces the value at v, in a published entry whose place is not fixed.
func storeValue[V any](p cellKind, v *V, value V) {
	if p == pointerWord {
		atomic.StorePointer((*unsafe.Pointer)(unsafe.Pointer(v)), *(*unsafe.Pointer)(unsafe.Pointer(&value)))
	} else {
		atomic.StoreUint64((*uint64)(unsafe.Pointer(v)), *(*uint64)(unsafe.Pointer(&value)))
	}
}
