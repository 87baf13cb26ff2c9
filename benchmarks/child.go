package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

// What is measured of a heap is measured in a process of its own, and so is what a
// fleet does: the program runs itself with a flag that nobody else sets, and reads
// JSON from its output.
const childFlag = "child"

// task is what a child is to measure.
type task struct {
	Measure string // memorySection, gcSection, or sharedSection: then it is a member of a fleet
	Kind    string // int64 or string
	Subject string
	Regions bool
	Entries int
	Redis   string // of a member: where Redis is
}

// found is what a child measured, by metric.
type found map[string]float64

// childCommand is what runs a task in a new process, which ends with ctx.
func childCommand(ctx context.Context, t task) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, self, "-"+childFlag, string(text))
	command.Stderr = os.Stderr
	return command, nil
}

// inChild runs a task in a new process.
func inChild(ctx context.Context, t task) (found, error) {
	command, err := childCommand(ctx, t)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	command.Stdout = &out
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("%s of %s: %w", t.Measure, t.Subject, err)
	}
	var f found
	return f, json.Unmarshal(out.Bytes(), &f)
}

// runChild is the child.
func runChild(text string) error {
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return err
	}
	var f found
	var err error
	switch {
	case t.Measure == sharedSection:
		return runMember(t, os.Stdin, os.Stdout)
	case t.Measure == gcSection:
		f, err = gcOf(t)
	case t.Kind == kind[string]():
		f, err = memoryOf[string](t)
	default:
		f, err = memoryOf[int64](t)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

// open opens the cache that a task is about.
func open[K subject.Key](t task) (subject.Subject[K], *subject.Cache[K], error) {
	s, ok := subject.Named[K](t.Subject)
	if !ok {
		return s, nil, fmt.Errorf("there is no subject %q", t.Subject)
	}
	cache, err := s.Open(subject.Config[K]{
		Capacity: t.Entries, TTL: ttl, Load: item[K], Regions: t.Regions,
	})
	return s, cache, err
}
