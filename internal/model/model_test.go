package model

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nearcache/nearcache/internal/raceflag"
)

// raceLimit is how many states of a scenario are explored under the race
// detector, which slows the exploration tenfold and has little to find here.
const raceLimit = 20_000

// TestProtocolHolds explores each scenario to the end, and checks that what it is
// about does happen in it.
func TestProtocolHolds(t *testing.T) {
	for _, s := range Scenarios() {
		if os.Getenv("NEARCACHE_MODEL") == "large" {
			s.Until++
			if !s.Shared {
				s.Budget.Probes++
			}
		}
		if raceflag.Enabled {
			s.Limit = raceLimit
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			r := Check(s)
			if r.Violation != nil {
				t.Fatalf("the bound breaks:\n%s", strings.Join(r.Violation, "\n"))
			}
			t.Logf("holds in %d states, at most %d steps away", r.States, r.Depth)
			if !r.Complete {
				t.Logf("there are more")
				return
			}
			for _, e := range s.Shows {
				if !r.Saw(e) {
					t.Errorf("%v never happens", e)
				}
			}
		})
	}
}

// TestEachRuleIsNeeded switches each rule off in the scenarios that are made for
// it.
func TestEachRuleIsNeeded(t *testing.T) {
	shown := map[Rule]bool{MintIfAbsent: true} // in a test of its own
	for _, s := range Scenarios() {
		for _, rule := range s.Needs {
			shown[rule] = true
			t.Run(fmt.Sprintf("%v/%s", rule, s.Name), func(t *testing.T) {
				t.Parallel()
				s := s.Without(rule)
				if raceflag.Enabled {
					s.Limit = raceLimit
				}
				r := Check(s)
				switch {
				case r.Violation != nil:
					t.Logf("%s\n\nWithout it, after %d states:\n%s", rule.Doc(), r.States, strings.Join(r.Violation, "\n"))
				case r.Complete:
					t.Errorf("the bound holds in all %d states without %v", r.States, rule)
				default:
					t.Logf("not found in the first %d states", r.States)
				}
			})
		}
	}
	for _, rule := range Rules() {
		if !shown[rule] {
			t.Errorf("no scenario shows what %v is for", rule)
		}
	}
}

// TestMintIfAbsentKeepsIdleChannelsWarm checks the one rule that the bound does
// not need: without it nothing is ever served by a lease where nobody publishes.
func TestMintIfAbsentKeepsIdleChannelsWarm(t *testing.T) {
	t.Parallel()
	s := scenario(t, "an idle channel")
	if raceflag.Enabled {
		s.Limit = raceLimit
	}
	r := Check(s.Without(MintIfAbsent))
	if r.Violation != nil {
		t.Errorf("the bound breaks:\n%s", strings.Join(r.Violation, "\n"))
	}
	if r.Saw(ServedByLease) {
		t.Error("an entry was served by a lease though there is no position")
	}
}

// TestNotCovered checks that the promise ends where the documentation says.
func TestNotCovered(t *testing.T) {
	for _, s := range NotCovered() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			r := Check(s)
			if r.Violation == nil {
				t.Fatalf("the bound holds in %d states", r.States)
			}
			t.Logf("%s\n\n%s", s.Doc, strings.Join(r.Violation, "\n"))
		})
	}
}

// TestEventsHappen checks that every event is expected of some scenario.
func TestEventsHappen(t *testing.T) {
	expected := map[Event]bool{}
	for _, s := range Scenarios() {
		for _, e := range s.Shows {
			expected[e] = true
		}
	}
	for e := range eventCount {
		if !expected[e] {
			t.Errorf("no scenario shows %v", e)
		}
	}
}

func TestRulesAreDocumented(t *testing.T) {
	for _, rule := range Rules() {
		if rule.String() == "" || !strings.HasSuffix(rule.Doc(), ".") {
			t.Errorf("rule %d: %q, %q", rule, rule, rule.Doc())
		}
	}
}

func scenario(t *testing.T, name string) Scenario {
	t.Helper()
	for _, s := range Scenarios() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no scenario %q", name)
	return Scenario{}
}
