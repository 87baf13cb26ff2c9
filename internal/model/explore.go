package model

import (
	"fmt"
	"hash/maphash"
)

// Result is what Check found.
type Result struct {
	States    int      // that were reached
	Depth     int      // steps to the state that is farthest away
	Complete  bool     // all states were reached
	Violation []string // the shortest interleaving that breaks the bound, a line for each step; nil: none does
	seen      uint64   // events
}

// Saw reports whether an event happened in some interleaving.
func (r Result) Saw(e Event) bool { return r.seen&(1<<e) != 0 }

// Check explores every interleaving of a scenario, breadth first, until one
// breaks the bound or there are no more.
func Check(s Scenario) Result {
	m := newMachine(s)
	return m.explore()
}

// machine takes the steps of one scenario. A step function is given a state and
// calls emit with each state that its kind of step can lead to.
type machine struct {
	Scenario

	visit  func(*state) // what emit does with a state, unless there is something to tell
	breach string       // of the bound, by the step that is about to be emitted
	seen   uint64       // events

	emitted int // steps from the state that is being expanded
	telling *telling
}

// telling is for the description of one step, the one with the given number.
type telling struct {
	number       int
	told, breach string
	reached      state
}

func newMachine(s Scenario) *machine {
	if s.Inbox == 0 {
		s.Inbox = maxInbox
	}
	return &machine{Scenario: s}
}

func (m *machine) on(r Rule) bool { return !m.without.has(r) }

// fingerprint stands for a state. At 128 bits, with seeds that are new in every
// run, a thousand million states collide with a probability of 1 to 10^20.
type fingerprint [2]uint64

// node is how a state was reached: from which one, by which of its steps.
type node struct {
	parent int32
	step   uint16
}

func (m *machine) explore() Result {
	seeds := [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	known := map[fingerprint]struct{}{}
	var nodes []node
	type place struct {
		state state
		node  int32
	}
	var current, next []place
	parent := int32(-1)
	broken := false

	m.visit = func(t *state) {
		if broken {
			return
		}
		f := fingerprint{maphash.Comparable(seeds[0], *t), maphash.Comparable(seeds[1], *t)}
		if m.breach != "" {
			broken = true
		} else if _, found := known[f]; found {
			return
		}
		known[f] = struct{}{}
		nodes = append(nodes, node{parent, uint16(m.emitted)})
		next = append(next, place{*t, int32(len(nodes) - 1)})
	}

	start := m.start()
	m.visit(&start)
	depth := -1
	for len(next) > 0 && !broken && !m.limited(len(nodes)) {
		depth++
		current, next = next, current[:0]
		for i := range current {
			parent = current[i].node
			m.emitted = 0
			m.steps(&current[i].state)
			if broken || m.limited(len(nodes)) {
				depth++
				break
			}
		}
	}
	result := Result{States: len(nodes), Depth: depth, Complete: len(next) == 0, seen: m.seen}
	if broken {
		result.Violation = m.tell(&start, nodes)
	}
	return result
}

func (m *machine) limited(states int) bool { return m.Limit > 0 && states >= m.Limit }

// tell describes the steps that lead to the last of the nodes.
func (m *machine) tell(start *state, nodes []node) []string {
	var steps []int
	for i := int32(len(nodes) - 1); nodes[i].parent >= 0; i = nodes[i].parent {
		steps = append(steps, int(nodes[i].step))
	}
	var lines []string
	s := *start
	for i := len(steps) - 1; i >= 0; i-- {
		m.telling = &telling{number: steps[i]}
		m.emitted = 0
		m.steps(&s)
		lines = append(lines, fmt.Sprintf("t=%d  %s", s.now, m.telling.told))
		s = m.telling.reached
	}
	return append(lines, fmt.Sprintf("t=%d  %s", s.now, m.telling.breach))
}

// emit hands over the state after a step; text describes the step.
func (m *machine) emit(t *state, text func() string) {
	m.checkHits(t)
	if m.telling == nil {
		m.visit(t)
	} else if m.telling.number == m.emitted {
		m.telling.told, m.telling.reached, m.telling.breach = text(), *t, m.breach
	}
	m.emitted++
	m.breach = ""
}
