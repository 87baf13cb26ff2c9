package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// An instance that has not ended by then is killed. It is longer than what its
// server and its backplane take to close at worst.
const stopTimeout = 10 * time.Second

// fleet is the instances' processes. None outlives this one, see process.leash.
type fleet struct {
	processes []*process
}

// process is one instance's.
type process struct {
	number int
	url    string
	cmd    *exec.Cmd
	leash  io.Closer // its stdin: it ends when this is closed, by us or by our death

	started chan string   // receives the URL
	exited  chan struct{} // closed when it has ended
	err     error         // how; set before exited is closed
}

// startFleet starts n instances and waits until all of them serve. If one does
// not, or ctx ends first, it ends them all. What they log goes to logs.
func startFleet(ctx context.Context, n int, s childSettings, logs io.Writer) (_ *fleet, err error) {
	f := &fleet{}
	defer func() {
		if err != nil {
			_ = f.stop() // err says it already
		}
	}()
	for number := 1; number <= n; number++ {
		p, err := startProcess(number, s, logs)
		if err != nil {
			return nil, fmt.Errorf("start instance %d: %w", number, err)
		}
		f.processes = append(f.processes, p)
	}
	for _, p := range f.processes {
		select {
		case p.url = <-p.started:
		case <-p.exited:
			return nil, fmt.Errorf("instance %d did not start: %w", p.number, p.err)
		case <-ctx.Done():
			return nil, fmt.Errorf("interrupted before all instances had started: %w", ctx.Err())
		}
	}
	return f, nil
}

func startProcess(number int, s childSettings, logs io.Writer) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{
		number:  number,
		cmd:     exec.Command(program, instanceCommand),
		started: make(chan string, 1),
		exited:  make(chan struct{}),
	}
	p.cmd.Env = s.environ()
	p.cmd.Stderr = &linePrefixer{prefix: fmt.Sprintf("instance %d: ", number), to: logs}
	if p.leash, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.exited)
		lines := bufio.NewReader(stdout)
		if url, err := lines.ReadString('\n'); err == nil {
			p.started <- strings.TrimSpace(url)
		}
		_, _ = io.Copy(io.Discard, lines) // to its end: Wait must not be called before
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// clients returns a client for each instance.
func (f *fleet) clients() []*instanceClient {
	var clients []*instanceClient
	for _, p := range f.processes {
		clients = append(clients, &instanceClient{number: p.number, web: newWebClient(p.url)})
	}
	return clients
}

// onExit calls fail when an instance ends by itself, until release is called.
// How it ended is for stop to say.
func (f *fleet) onExit(fail func(error)) (release func()) {
	released := make(chan struct{})
	var watching sync.WaitGroup
	for _, p := range f.processes {
		watching.Go(func() {
			select {
			case <-p.exited:
				fail(fmt.Errorf("instance %d ended by itself", p.number))
			case <-released:
			}
		})
	}
	return func() {
		close(released)
		watching.Wait()
	}
}

// stop ends all instances and waits for them. Its error says which of them ended
// badly, one that could not close its backplane in order among them.
func (f *fleet) stop() error {
	for _, p := range f.processes {
		_ = p.leash.Close()
	}
	limit, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var failures []error
	for _, p := range f.processes {
		select {
		case <-p.exited:
			if p.err != nil {
				failures = append(failures, fmt.Errorf("instance %d: %w", p.number, p.err))
			}
		case <-limit.Done():
			_ = p.cmd.Process.Kill()
			<-p.exited
			failures = append(failures, fmt.Errorf("instance %d did not end within %v and was killed", p.number, stopTimeout))
		}
	}
	return errors.Join(failures...)
}
