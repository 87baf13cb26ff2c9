package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// linePrefixer passes what is written to it on, line by line with a prefix.
type linePrefixer struct {
	prefix string
	to     io.Writer
	begun  []byte // a line without its end
}

func (p *linePrefixer) Write(b []byte) (int, error) {
	p.begun = append(p.begun, b...)
	for {
		end := bytes.IndexByte(p.begun, '\n')
		if end < 0 {
			return len(b), nil
		}
		if _, err := io.WriteString(p.to, p.prefix+string(p.begun[:end+1])); err != nil {
			return 0, err
		}
		p.begun = p.begun[end+1:]
	}
}

// logTail takes one line at a time, from any number of goroutines. It copies them
// to a writer. While there is none, it holds back the last few, since a table that is
// redrawn leaves no room for lines.
type logTail struct {
	mu      sync.Mutex // guards everything below
	to      io.Writer  // nil: hold back
	held    []string
	dropped int
}

const heldLines = 10

func (t *logTail) Write(line []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.to != nil {
		return t.to.Write(line)
	}
	if len(t.held) == heldLines {
		t.held = t.held[1:]
		t.dropped++
	}
	t.held = append(t.held, string(line))
	return len(line), nil
}

// release writes what was held back, and from then on passes lines on.
func (t *logTail) release(to io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped > 0 {
		fmt.Fprintf(to, "(%d earlier lines of the instances' logs are left out)\n", t.dropped)
	}
	for _, line := range t.held {
		_, _ = io.WriteString(to, line)
	}
	t.held, t.to = nil, to
}
