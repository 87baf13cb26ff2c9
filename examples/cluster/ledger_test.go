package main

import (
	"testing"
	"time"
)

func TestLedgerJudge(t *testing.T) {
	// Version 1 was superseded at 10 s and version 2 at 20 s; each invalidation was
	// confirmed 5 ms later. Version 3 was superseded at 30 s, and nothing confirmed.
	const ms = time.Millisecond
	book := item{kind: "product", key: "1"}
	l := newLedger()
	l.supersede(book, 10*time.Second)
	l.confirm(book, 2, 10*time.Second+5*ms)
	l.supersede(book, 20*time.Second)
	l.confirm(book, 3, 20*time.Second+5*ms)
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
		{"within the tolerance", book, 2, 22 * time.Second, finding{stale: true, age: 2 * time.Second}},
		{"within the tolerance since the confirmation", book, 2, 22*time.Second + 4*ms,
			finding{stale: true, age: 2*time.Second + 4*ms}},
		{"superseded 2.1 s before", book, 2, 22100 * ms, finding{stale: true, age: 2100 * ms, violation: true}},
		{"superseded twice", book, 1, 20 * time.Second, finding{stale: true, age: 10 * time.Second, violation: true}},
		{"never confirmed", book, 3, time.Minute, finding{stale: true, age: 30 * time.Second}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := l.judge(test.item, test.version, test.began); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// An invalidation evicts whatever is older, also what an earlier, lost one meant.
func TestLedgerConfirmCoversEarlierVersions(t *testing.T) {
	price := item{kind: "price", key: "SKU-1"}
	l := newLedger()
	l.supersede(price, 1*time.Second)
	l.supersede(price, 2*time.Second)
	l.supersede(price, 3*time.Second)
	l.confirm(price, 3, 4*time.Second) // of the change that made version 3
	l.confirm(price, 2, 9*time.Second) // late, and no news

	for version, violates := range map[int64]bool{1: true, 2: true, 3: false, 4: false} {
		if got := l.judge(price, version, 6100*time.Millisecond).violation; got != violates {
			t.Errorf("version %d: violation %v, want %v", version, got, violates)
		}
	}
}
