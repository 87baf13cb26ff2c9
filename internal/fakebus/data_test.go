package fakebus

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// bytesOf returns a value with an id.
func bytesOf(id string) []byte { return []byte("v" + id + "rest") }

// id returns one, which is a token too.
func id(n int) string { return fmt.Sprintf("%016d", n) }

// holding returns data in which cache "c" has a value of each key, with the ids 1,
// 2 and so on, that live for an hour.
func holding(keys ...string) *data {
	d := newData()
	for i, key := range keys {
		d.claim("c", "h", "e", time.Hour, []transport.Claim{{Key: key, Token: id(i + 1), Life: time.Second}})
		d.put("c", []put{{key: key, token: id(i + 1), text: string(bytesOf(id(i + 1))), life: time.Hour}})
	}
	return d
}

// has returns the keys whose values are there, of cache "c".
func has(d *data, keys ...string) string {
	var found []string
	for i, v := range d.read("c", keys) {
		if v.Found {
			found = append(found, keys[i])
		}
	}
	return strings.Join(found, " ")
}

func judged(d *data, regions ...string) (r transport.Reading) {
	d.judge(&r, "c", regions)
	return r
}

func TestClaims(t *testing.T) {
	tests := []struct {
		name  string
		claim transport.Claim
		want  transport.ClaimState
	}{
		{"of what is not there", transport.Claim{Key: "new"}, transport.ClaimTaken},
		{"of what was there", transport.Claim{Key: "new", Seen: id(7)}, transport.ClaimTaken},
		{"of what is there, and was not seen", transport.Claim{Key: "a"}, transport.ClaimChanged},
		{"of what is there", transport.Claim{Key: "a", Seen: id(1)}, transport.ClaimTaken},
		{"of another value than was seen", transport.Claim{Key: "a", Seen: id(7)}, transport.ClaimChanged},
		{"of any value", transport.Claim{Key: "a", Any: true}, transport.ClaimTaken},
		{"of what is no value", transport.Claim{Key: "short"}, transport.ClaimTaken},
		{"of somebody else's", transport.Claim{Key: "busy", Any: true}, transport.ClaimBusy},
		{"of somebody else's before a clear", transport.Claim{Key: "cleared"}, transport.ClaimTaken},
		{"of somebody else's, and Redis has lost the counts", transport.Claim{Key: "lost"}, transport.ClaimTaken},
		{"after one that stored nothing", transport.Claim{Key: "bypassed"}, transport.ClaimBypass},
		{"of any value, after one that stored nothing", transport.Claim{Key: "bypassed", Any: true}, transport.ClaimTaken},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := holding("a")
				set(d.values, item{"c", "short"}, entry{text: "v"}, time.Hour)
				d.clears.fields["n:c"], d.clears.fields["c:c"] = 5, 5
				for key, e := range map[string]entry{
					"busy":     {id(9), 0, "e", 5},
					"cleared":  {id(9), 0, "e", 4},
					"lost":     {id(9), 0, "e0", 5},
					"bypassed": {text: bypassed},
				} {
					set(d.tokens, item{"c", key}, e, time.Hour)
				}
				test.claim.Token, test.claim.Life = id(8), time.Second
				got := d.claim("c", "h2", "e2", time.Hour, []transport.Claim{test.claim, test.claim})
				again := test.want
				if again == transport.ClaimTaken {
					again = transport.ClaimBusy
				}
				require.Equal(t, []transport.ClaimState{test.want, again}, got.States)
				require.Equal(t, "e", got.Epoch, "it has begun before")
				require.EqualValues(t, 5, got.Count)
			})
		})
	}
}

func TestPuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newData()
		claims := []transport.Claim{
			{Key: "a", Token: id(1), Life: time.Second}, {Key: "none", Token: id(2), Life: time.Second},
			{Key: "late", Token: id(3), Life: time.Millisecond}, {Key: "lost", Token: id(4), Life: time.Second},
		}
		d.claim("c", "h", "e", time.Hour, claims)
		time.Sleep(2 * time.Millisecond)
		d.change([]transport.Change{{Cache: "c", Keys: []string{"lost"}}}, 1024)
		value := func(key, token, text string) put { return put{key: key, token: token, text: text, life: time.Minute} }
		puts := []put{
			value("a", id(1), "a"), value("a", id(1), "again"), value("none", id(2), ""),
			value("late", id(3), "late"), value("lost", id(4), "lost"),
		}
		require.Equal(t, []bool{true, false, false, false, false}, d.put("c", puts))
		require.Empty(t, d.tokens)

		got := d.read("c", []string{"a", "none", "late", "lost"})
		require.Equal(t, transport.Value{Found: true, Bytes: []byte("a"), Life: time.Minute}, got[0])
		require.Equal(t, make([]transport.Value, 3), got[1:])
		time.Sleep(time.Minute)
		require.Equal(t, "a", has(d, "a"), "in its last millisecond")
		time.Sleep(time.Millisecond)
		require.Empty(t, has(d, "a"))
	})
}

func TestPutsWithoutAValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := holding("kept", "bypassed", "forgotten")
		claims := []transport.Claim{
			{Key: "kept", Token: id(4), Any: true, Life: time.Second},
			{Key: "bypassed", Token: id(5), Any: true, Life: time.Second},
			{Key: "forgotten", Token: id(6), Any: true, Life: time.Second},
		}
		d.claim("c", "h", "e", time.Hour, claims)
		require.Equal(t, make([]bool, 3), d.put("c", []put{
			{key: "kept", token: id(4)}, {key: "bypassed", token: id(5), bypass: true}, {key: "forgotten", token: id(6), forget: true},
		}))
		require.Equal(t, "kept bypassed", has(d, "kept", "bypassed", "forgotten"))

		for i := range claims {
			claims[i].Any = false
			claims[i].Seen = id(i + 1)
		}
		again := d.claim("c", "h", "e", time.Hour, claims)
		require.Equal(t, []transport.ClaimState{transport.ClaimTaken, transport.ClaimBypass, transport.ClaimBypass}, again.States)
		time.Sleep(transport.BypassFor + time.Millisecond)
		again = d.claim("c", "h", "e", time.Hour, claims[1:])
		require.Equal(t, []transport.ClaimState{transport.ClaimTaken, transport.ClaimTaken}, again.States)
	})
}

func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := holding("a", "b")
		set(d.tokens, item{"c", "a"}, entry{text: id(9)}, time.Hour)
		d.change([]transport.Change{{Cache: "other", Keys: []string{"b"}}, {Cache: "c", Keys: []string{"a"}}}, 1024)
		require.Equal(t, "b", has(d, "a", "b"))
		require.Empty(t, d.tokens)
		require.Equal(t, transport.Reading{Epoch: "e", Regions: []uint64{0}}, judged(d, "r"))

		now := uint64(time.Now().UnixMicro())
		d.change([]transport.Change{{Cache: "c", Regions: []string{"r", "s"}}}, 1024)
		d.change([]transport.Change{{Cache: "c", Clear: true}, {Cache: "other", Clear: true}}, 1024)
		require.Equal(t, "b", has(d, "a", "b"), "it is there, and not valid")
		require.Equal(t, transport.Reading{
			Epoch: "e", Count: now + 2, Cleared: now + 2, Regions: []uint64{now, now + 1, 0},
		}, judged(d, "r", "s", "t"))
		require.Equal(t, now+2, d.claim("c", "", "", time.Hour, nil).Count)
		time.Sleep(time.Hour)
		d.change([]transport.Change{{Cache: "c", Regions: []string{"r"}}}, 1024)
		require.Equal(t, uint64(time.Now().UnixMicro()), judged(d).Count)

		d.change([]transport.Change{{All: true}, {Cache: "c", Clear: true}}, 1024)
		require.Equal(t, transport.Reading{Regions: []uint64{0}}, judged(d, "r"))
		d.change([]transport.Change{{Cache: "c", Keys: []string{"b"}, Clear: true}}, 1024)
		require.Equal(t, transport.Reading{}, judged(d), "nothing is valid as it is")
		require.Equal(t, "e2", d.claim("c", "h", "e2", time.Hour, nil).Epoch)
		require.Equal(t, transport.Reading{Epoch: "e2"}, judged(d))
	})
}

// Regions that no value is left of are forgotten, those of the others never.
func TestRegionsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := holding("a")
		clear := func(n int) {
			var regions []string
			for i := range n {
				regions = append(regions, fmt.Sprint(time.Now().UnixNano(), i))
			}
			d.change([]transport.Change{{Cache: "c", Regions: regions}}, 20)
		}
		first := time.Now().UnixMicro()
		clear(10)
		time.Sleep(time.Hour)
		clear(10)
		require.Len(t, d.clears.fields, 20+3) // l, n, limit
		require.EqualValues(t, 2*(20+4), d.clears.fields["limit"])
		time.Sleep(time.Second)
		clear(25)
		require.Len(t, d.clears.fields, 35+4)
		require.EqualValues(t, 9, d.clears.fields["c:c"]-first, "of the last that was forgotten")
		clear(64 * 20)
		require.Nil(t, d.clears)
	})
}

func TestProbesVoidOtherHistories(t *testing.T) {
	d := holding()
	d.claim("c", "h", "e", time.Hour, nil)
	for _, same := range []string{"h", ""} {
		d.probe(same)
		require.Equal(t, "e", judged(d).Epoch)
	}
	d.probe("h2")
	require.Empty(t, judged(d).Epoch)
}
