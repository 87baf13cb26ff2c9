// Mutation switches off, one at a time, the fences and checks that the bound on
// staleness rests on, and sees that the tests notice:
//
//	go run ./internal/mutation            all of them, a table of what failed
//	go run ./internal/mutation -run lease those whose name has "lease" in it
//	go run ./internal/mutation -list      what there is, without running anything
//
// The source is not touched and has no switches in it: the compiler is given the
// changed file in place of the real one (go build -overlay). Each mutation names
// the tests that have to fail under it, and the command fails if any of them
// passes. docs/proof.md has its table.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// mutation is one fence or check, and how to switch it off.
type mutation struct {
	name  string
	fence string   // what it does when it is there
	file  string   // from the root of the module
	old   string   // occurs exactly once in file
	new   string   // takes its place
	tests []string // each fails without it
}

func main() {
	pattern := flag.String("run", "", "only mutations whose name matches this regular `expression`")
	list := flag.Bool("list", false, "print the table of docs/proof.md and run nothing")
	timeout := flag.Duration("timeout", 2*time.Minute, "for each test; one that hangs has failed")
	flag.Parse()
	if *list {
		fmt.Print(table())
		return
	}
	if err := run(context.Background(), *pattern, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, pattern string, timeout time.Duration) error {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	var failed []string
	for _, m := range mutations {
		if !wanted.MatchString(m.name) {
			continue
		}
		began := time.Now()
		survived, err := m.run(ctx, root, timeout)
		verdict := "caught by " + strings.Join(m.tests, ", ")
		switch {
		case err != nil:
			verdict = "FAILED: " + err.Error()
		case len(survived) > 0:
			verdict = "NOT CAUGHT by " + strings.Join(survived, ", ")
		}
		if err != nil || len(survived) > 0 {
			failed = append(failed, m.name)
		}
		fmt.Printf("%-45s %5.1fs  %s\n", m.name, time.Since(began).Seconds(), verdict)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d mutation(s) were not caught: %s", len(failed), strings.Join(failed, ", "))
	}
	return nil
}

// moduleRoot returns the folder of the module's go.mod.
func moduleRoot() (string, error) {
	path, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	return filepath.Dir(strings.TrimSpace(string(path))), nil
}

// apply returns m's file with m in it.
func (m *mutation) apply(root string) ([]byte, error) {
	source, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, err
	}
	if n := bytes.Count(source, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("%s has %d times %q, and it has to be there once", m.file, n, m.old)
	}
	return bytes.Replace(source, []byte(m.old), []byte(m.new), 1), nil
}

// run runs m's tests with m in place, and returns those that passed.
func (m *mutation) run(ctx context.Context, root string, timeout time.Duration) (survived []string, err error) {
	overlay, cleanUp, err := m.overlay(root)
	if err != nil {
		return nil, err
	}
	defer cleanUp()
	for _, test := range m.tests {
		failed, err := m.fails(ctx, root, overlay, test, timeout)
		if err != nil {
			return nil, err
		}
		if !failed {
			survived = append(survived, test)
		}
	}
	return survived, nil
}

// overlay writes the changed file, and the file that tells the compiler of it.
func (m *mutation) overlay(root string) (path string, cleanUp func(), err error) {
	changed, err := m.apply(root)
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "mutation")
	if err != nil {
		return "", nil, err
	}
	cleanUp = func() { _ = os.RemoveAll(dir) }
	replacement := filepath.Join(dir, filepath.Base(m.file))
	path = filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{
		"Replace": {filepath.Join(root, m.file): replacement},
	})
	if err == nil {
		err = errors.Join(os.WriteFile(replacement, changed, 0o600), os.WriteFile(path, replace, 0o600))
	}
	if err != nil {
		cleanUp()
		return "", nil, err
	}
	return path, cleanUp, nil
}

// fails reports whether a test of the file's package fails under an overlay. That
// it hangs until the timeout counts; that it does not compile, or does not exist,
// is an error.
func (m *mutation) fails(ctx context.Context, root, overlay, test string, timeout time.Duration) (bool, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1", "-failfast", "-overlay", overlay,
		"-timeout", timeout.String(), "-run", "^"+test+"$", "./"+filepath.Dir(m.file))
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "NEARCACHE_REQUIRE_REDIS=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return false, err
	}
	ran := false
	var said strings.Builder
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var event struct{ Action, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &event) != nil {
			continue
		}
		ran = ran || event.Action == "run" && event.Test == test
		said.WriteString(event.Output)
	}
	if !ran {
		return false, fmt.Errorf("%s did not run: %s%s", test, said.String(), stderr.String())
	}
	return err != nil, nil
}

// table returns the table of docs/proof.md.
func table() string {
	var b strings.Builder
	b.WriteString("| switched off | what it does | fails without it |\n|---|---|---|\n")
	for _, m := range mutations {
		fmt.Fprintf(&b, "| %s | %s | `%s` |\n", m.name, m.fence, strings.Join(m.tests, "`, `"))
	}
	return b.String()
}
