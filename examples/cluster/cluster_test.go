//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/nearcache/nearcache/internal/redistest"
)

// programVariable makes this test binary the program itself, as it then does for
// its instances.
const programVariable = "CLUSTER_TEST_PROGRAM"

// deafVariable makes the program's instances deaf ones.
const deafVariable = "CLUSTER_TEST_DEAF"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		if os.Getenv(deafVariable) != "" && os.Args[1] == instanceCommand {
			deafMain()
		}
		main()
	}
	_ = os.Setenv(programVariable, "yes")
	_ = os.Unsetenv(redisVariable)
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // a second, for each process there is
	os.Exit(m.Run())
}

// program is one that was started by a test.
type program struct {
	cmd            *exec.Cmd
	stdout, stderr lockedBuffer
	ended          chan struct{}
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(os.Args[0], args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's signals reach the group
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// small are the flags of a run that needs little of the machine.
func small(args ...string) []string {
	return append([]string{"-products", "500", "-reads", "2000", "-changes", "100"}, args...)
}

func (p *program) wait(t *testing.T) (exitCode int) {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		t.Fatal("the program does not end")
		return 0
	}
}

var pidPattern = regexp.MustCompile(`instance \d+ +pid (\d+)`)

// instances returns the process ids that the program has printed.
func (p *program) instances(t *testing.T) []int {
	t.Helper()
	var pids []int
	for _, match := range pidPattern.FindAllStringSubmatch(p.stdout.String(), -1) {
		pid, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

var progressPattern = regexp.MustCompile(`\n\d+s `)

// awaitProgress waits until the traffic runs, and returns the instances.
func (p *program) awaitProgress(t *testing.T) []int {
	t.Helper()
	eventually(t, "progress is shown", func() bool { return progressPattern.MatchString(p.stdout.String()) })
	return p.instances(t)
}

func (p *program) wantVerdict(t *testing.T) {
	t.Helper()
	for _, want := range []string{"\nReads: ", "\nChanges: ", "\nStale reads: ", "\nOK: "} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("no %q in the output", want)
		}
	}
}

func wantGone(t *testing.T, pids []int) {
	t.Helper()
	if len(pids) == 0 {
		t.Error("no process ids were printed")
	}
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !runs(pid) })
	}
}

// runs reports whether a process runs. One that has ended and waits for whoever
// has inherited it does not.
func runs(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || !haveProc()
	}
	return !bytes.Contains(stat, []byte(") Z "))
}

func haveProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

func TestRunEndsWithVerdict(t *testing.T) {
	t.Parallel()
	p := start(t, small("-duration", "2s")...)
	if code := p.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	p.wantVerdict(t)
	pids := p.instances(t)
	if len(pids) != 3 {
		t.Errorf("%d instances, want 3", len(pids))
	}
	wantGone(t, pids)
	if !regexp.MustCompile(`; [1-9]\d* invalidations sent, [1-9]\d* applied`).MatchString(p.stdout.String()) {
		t.Error("no invalidation was sent and applied")
	}
	if p.stderr.String() != "" {
		t.Error("there is something on stderr")
	}
}

func TestSharedRunCompares(t *testing.T) {
	t.Parallel()
	p := start(t, small("-duration", "2s", "-shared", "-redis", "unix://"+redistest.StartOnSocket(t))...)
	if code := p.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	p.wantVerdict(t)
	if n := strings.Count(p.stdout.String(), "\nOK: nothing was served"); n != 2 {
		t.Errorf("%d verdicts, want one for each run", n)
	}
	comparison := regexp.MustCompile(`\n  without sharing: +[\d,]+ times for ([\d,]+) reads by users` +
		`\n  with sharing: +[\d,]+ times for ([\d,]+) reads by users\nOK: sharing spared it \d`)
	if m := comparison.FindStringSubmatch(p.stdout.String()); m == nil {
		t.Error("no comparison in the output")
	} else if m[1] != m[2] {
		t.Errorf("%s and %s reads are compared", m[1], m[2])
	}
	if n := len(p.instances(t)); n != 6 {
		t.Errorf("%d instances, want 3 for each run", n)
	}
	wantGone(t, p.instances(t))
	if p.stderr.String() != "" {
		t.Error("there is something on stderr")
	}
}

func TestSharedRunThatIsCutShort(t *testing.T) {
	t.Parallel()
	p := start(t, small("-duration", "1h", "-shared", "-redis", "unix://"+redistest.StartOnSocket(t))...)
	pids := p.awaitProgress(t)
	if err := syscall.Kill(p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	p.wantVerdict(t)
	if want := "they are not compared"; !strings.Contains(p.stdout.String(), want) {
		t.Errorf("no %q in the output", want)
	}
	wantGone(t, pids)
}

func TestSharedNeedsARealRedis(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"none is named", nil, exitUsage, "REDIS_CONNECTION_STRING=localhost:6390 go run ./examples/cluster -shared"},
		{"one without a history", []string{"-redis", miniredis.RunT(t).Addr()}, exitFailure, "does not tell its history"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := start(t, append(test.args, "-shared")...)
			if code := p.wait(t); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(p.stderr.String(), test.says) {
				t.Errorf("no %q on stderr", test.says)
			}
			if p.stdout.String() != "" {
				t.Error("there is something on stdout")
			}
		})
	}
}

// Not parallel: the environment is for this test alone.
func TestViolationFailsRun(t *testing.T) {
	t.Setenv(deafVariable, "yes")
	p := start(t, small("-duration", "5s", "-instances", "2")...)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"\nNo effect: ", "\nVIOLATION: instance "} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if p.stderr.String() != "" {
		t.Error("there is something on stderr")
	}
}

// deafMain is what a deaf instance does instead of instanceMain.
func deafMain() {
	server, err := serve(deaf(newSourceClient(os.Getenv(sourceVariable))))
	if err != nil {
		panic(err)
	}
	fmt.Println(server.url)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(exitOK)
}

func TestSignalEndsRunWithVerdict(t *testing.T) {
	tests := []struct {
		name string
		send func(parent int) error
	}{
		{"SIGINT", func(parent int) error { return syscall.Kill(parent, syscall.SIGINT) }},
		{"SIGTERM", func(parent int) error { return syscall.Kill(parent, syscall.SIGTERM) }},
		{"Ctrl-C, which the instances get too", func(parent int) error { return syscall.Kill(-parent, syscall.SIGINT) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, small("-duration", "1h", "-instances", "2")...)
			pids := p.awaitProgress(t)
			if err := test.send(p.cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if code := p.wait(t); code != exitOK {
				t.Errorf("exit code %d", code)
			}
			p.wantVerdict(t)
			wantGone(t, pids)
		})
	}
}

func TestInstancesEndWithTheirParent(t *testing.T) {
	t.Parallel()
	p := start(t, small("-duration", "1h", "-instances", "2")...)
	pids := p.awaitProgress(t)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	wantGone(t, pids)
}

func TestLostInstanceFailsRun(t *testing.T) {
	t.Parallel()
	p := start(t, small("-duration", "1h")...)
	pids := p.awaitProgress(t)
	if err := syscall.Kill(pids[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	if want := "cluster: instance 2: signal: killed"; !strings.Contains(p.stderr.String(), want) {
		t.Errorf("no %q on stderr", want)
	}
	wantGone(t, pids)
}

func TestBadFlags(t *testing.T) {
	tests := []struct {
		name string
		args []string
		says string
	}{
		{"unknown flag", []string{"-instance", "3"}, "flag provided but not defined"},
		{"argument", []string{"3"}, `unexpected argument "3"`},
		{"no instances", []string{"-instances", "0"}, "-instances 0 is not between 1 and 16"},
		{"too many instances", []string{"-instances", "17"}, "-instances 17 is not between 1 and 16"},
		{"no number", []string{"-instances", "three"}, "invalid value"},
		{"no duration", []string{"-duration", "0s"}, "-duration 0s"},
		{"negative delay", []string{"-read-delay", "-1ms"}, "-read-delay -1ms"},
		{"few products", []string{"-products", "1"}, "-products 1"},
		{"no reads", []string{"-reads", "0"}, "-reads 0"},
		{"no changes", []string{"-changes", "0"}, "-changes 0"},
		{"bad connection string", []string{"-redis", "localhost,nonsense=1"}, "nonsense"},
		{"blank connection string", []string{"-redis", " "}, "is blank"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, test.args...)
			if code := p.wait(t); code != exitUsage {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(p.stderr.String(), test.says) {
				t.Errorf("no %q on stderr", test.says)
			}
			if p.stdout.String() != "" {
				t.Error("there is something on stdout")
			}
		})
	}
}

// nobody is an address where nothing listens: a port below those that are given
// out, so that no test running beside this one gets it.
const nobody = "127.0.0.1:1"

func TestUnreachableRedis(t *testing.T) {
	tests := []struct{ name, suffix, says string }{
		{"fails at once", "", "connection refused"},
		{"fails also where an instance may start without", ",abortConnect=False", "did not reach Redis"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, "-redis", nobody+test.suffix)
			if code := p.wait(t); code != exitFailure {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(p.stderr.String(), test.says) {
				t.Errorf("no %q on stderr", test.says)
			}
			if p.stdout.String() != "" {
				t.Error("there is something on stdout, though no instance can have started")
			}
		})
	}
}

func TestFleetDoesNotStartWithoutRedis(t *testing.T) {
	t.Parallel()
	var logs lockedBuffer
	_, err := startFleet(context.Background(), 2,
		childSettings{redis: nobody, channel: "test", source: "http://127.0.0.1:0"}, &logs)
	if err == nil || !strings.Contains(err.Error(), "instance 1 did not start") {
		t.Errorf("got %v", err)
	}
	if want := "instance 1: nearcache: cannot reach Redis"; !strings.Contains(logs.String(), want) {
		t.Errorf("no %q in the logs:\n%s", want, logs.String())
	}
}

// lockedBuffer is written by one goroutine while another reads it.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
