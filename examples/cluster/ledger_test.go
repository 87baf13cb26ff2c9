package main

import (
	"testing"
	"time"
)

func TestLedgerJudge(t *testing.T) {
	// Version 1 was superseded at 10 s, version 2 at 20 s, and version 3 at 30 s.
	const ms = time.Millisecond
	book := item{kind: "product", key: "1"}
	l := newLedger()
	l.supersede(book, 10*time.Second)
	l.supersede(book, 20*time.Second)
	l.supersede(book, 30*time.Second)

	tests := []struct {
		name    string
		item    item
		version int64
		began   time.Duration
		want    finding
	}{
		{"an item that never changed", item{kind: "product", key: "2"}, 1, time.Hour, finding{}},
		{"the current version", book, 4, time.Hour, finding{}},
		{"begun before the change", book, 1, 10*time.Second - 1, finding{}},
		{"begun at the change", book, 1, 10 * time.Second, finding{}},
		{"begun just after the change", book, 1, 10*time.Second + ms, finding{stale: true, age: ms}},
		{"superseded 2 s before", book, 2, 22 * time.Second, finding{stale: true, age: 2 * time.Second}},
		{"superseded just over 2 s before", book, 2, 22*time.Second + 1,
			finding{stale: true, age: 2*time.Second + 1, violation: true}},
		{"superseded twice", book, 1, 20 * time.Second, finding{stale: true, age: 10 * time.Second, violation: true}},
		{"superseded long before", book, 3, time.Minute, finding{stale: true, age: 30 * time.Second, violation: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := l.judge(test.item, test.version, test.began); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
