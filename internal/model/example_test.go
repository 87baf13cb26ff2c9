package model_test

import (
	"fmt"

	"github.com/nearcache/nearcache/internal/model"
)

// What the history in the echo is for. A holds v0 and knows position p1. Redis
// accepts the invalidation of v0, which makes p2, and fails before its replica
// knows of it: the new master is at p1 again, and so is A.
func ExampleCheck() {
	result := model.Check(model.Scenario{
		Bound: 2, Until: 4, Instances: 1,
		Writers: []model.Writer{{Home: model.Elsewhere, Does: []model.Op{model.Remove}}},
		Budget:  model.Budget{Writes: 1, Probes: 1, Failovers: 1},
	}.Without(model.HistoryID))
	for _, line := range result.Violation {
		fmt.Println(line)
	}
	// Output:
	// t=0  writer 1 writes v1 to the source; Remove sends its message
	// t=0  Redis runs the script of writer 1: p1 → p2, v1's invalidation is accepted
	// t=0  it is 1
	// t=1  it is 2
	// t=2  failover to the replica: p1 in history h2, was p2 in history h1; connections break
	// t=2  A subscribes again
	// t=2  A sends a probe
	// t=2  Redis runs A's probe, sent at 2: p1 in history h2
	// t=2  A receives the echo (p1 in history h2, sent at 2)
	// t=2  BREACH: A serves v0 to a Get that started at 2, under its lease; its invalidation by v1 was accepted at 0, and the bound is 2
}

// Why Redis deletes from the shared level in the step in which it publishes. A hears
// of v1, evicts v0, and reads it again at the shared level, before it is deleted.
// Nobody will tell A once more.
func ExampleCheck_shared() {
	result := model.Check(model.Scenario{
		Shared: true, Bound: 1, Until: 1, Instances: 1,
		Writers: []model.Writer{{Home: model.Elsewhere, Does: []model.Op{model.Remove}}},
		Budget:  model.Budget{Writes: 1, Loads: 1, Probes: 1},
	}.Without(model.DeleteIsPublish))
	for _, line := range result.Violation {
		fmt.Println(line)
	}
	// Output:
	// t=0  writer 1 writes v1 to the source; Remove sends its message
	// t=0  writer 1's commands publish: p1 → p2, v1's invalidation is accepted
	// t=0  it is 1
	// t=1  A receives the message (p1 → p2)
	// t=1  A sends a probe
	// t=1  Redis runs A's probe, sent at 1: p2 in history h1
	// t=1  A receives the echo (p2 in history h1, sent at 1)
	// t=1  a Get misses on A, and starts a load
	// t=1  A's load asks Redis: v0, of epoch e1, count 0
	// t=1  A's load reads the clears of Redis: epoch e1, count 0, cache 0, R 0, S 0: valid
	// t=1  A's load ends, v0 is kept
	// t=1  BREACH: A serves v0 to a Get that started at 1, under its lease; its invalidation by v1 was accepted at 0, and the bound is 1
}
