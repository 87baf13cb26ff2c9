// Mutation switches off, one at a time, the fences and checks that the bound on
// staleness rests on, and sees that the tests notice:
//
//	go run ./internal/mutation            all of them, a table of what failed
//	go run ./internal/mutation -run lease those whose name has "lease" in it
//	go run ./internal/mutation -share 10  a tenth of them, another one each day
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
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
	share := flag.Int("share", 1, "run one mutation of `n`, others each day")
	list := flag.Bool("list", false, "print the table of docs/proof.md and run nothing")
	timeout := flag.Duration("timeout", 2*time.Minute, "for each test; one that hangs has failed")
	flag.Parse()
	if *list {
		fmt.Print(table())
		return
	}
	if err := run(context.Background(), *pattern, *share, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, pattern string, share int, timeout time.Duration) error {
	if share < 1 {
		return fmt.Errorf("-share %d: it has to be 1 or more", share)
	}
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	packages, err := testPackages(root)
	if err != nil {
		return err
	}
	var failed []string
	for i, m := range mutations {
		if !wanted.MatchString(m.name) || i%share != time.Now().YearDay()%share {
			continue
		}
		began := time.Now()
		survived, err := m.run(ctx, root, packages, timeout)
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
func (m *mutation) run(ctx context.Context, root string, packages map[string]string, timeout time.Duration) (survived []string, err error) {
	overlay, cleanUp, err := m.overlay(root)
	if err != nil {
		return nil, err
	}
	defer cleanUp()
	for folder, tests := range m.testsByFolder(packages) {
		failed, err := fails(ctx, root, overlay, folder, tests, timeout)
		if err != nil {
			return nil, err
		}
		for _, test := range tests {
			if !failed[test] {
				survived = append(survived, test)
			}
		}
	}
	return survived, nil
}

// testsByFolder groups m's tests by the folder of their package.
func (m *mutation) testsByFolder(packages map[string]string) map[string][]string {
	folders := map[string][]string{}
	for _, test := range m.tests {
		name, _, _ := strings.Cut(test, "/")
		folders[packages[name]] = append(folders[packages[name]], test)
	}
	return folders
}

// testPackages returns the folder of each test of the module, from its root. A test that
// moves to another package keeps its mutations. Of two tests with one name, neither can
// be meant: the folder is ambiguous.
func testPackages(root string) (map[string]string, error) {
	packages := map[string]string{}
	declaration := regexp.MustCompile(`(?m)^func (Test\w+|Fuzz\w+)\(`)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); path != root && err == nil || entry.Name() == ".git" {
				return filepath.SkipDir // another module
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, found := range declaration.FindAllSubmatch(source, -1) {
			name := string(found[1])
			if other, taken := packages[name]; taken && other != folder {
				packages[name] = ambiguous
			} else {
				packages[name] = folder
			}
		}
		return nil
	})
	return packages, err
}

// ambiguous is the folder of a test whose name occurs in several packages.
const ambiguous = "?"

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

// fails returns which of the tests of one package fail under an overlay. That a test
// hangs until the timeout counts; that it does not compile, or does not exist, is an
// error.
func fails(ctx context.Context, root, overlay, folder string, tests []string, timeout time.Duration) (map[string]bool, error) {
	failed, said := map[string]bool{}, ""
	together := tests
	if len(tests) > 1 { // but for parts of tests
		together = slices.DeleteFunc(slices.Clone(tests), func(test string) bool { return strings.Contains(test, "/") })
	}
	if len(together) > 0 {
		var err error
		if failed, said, err = runTests(ctx, root, overlay, folder, together, timeout); err != nil {
			return nil, err
		}
	}
	for _, test := range tests {
		_, ended := failed[test]
		switch {
		case ended:
		case len(tests) == 1:
			return nil, fmt.Errorf("%s did not run: %s", test, said)
		default: // it is a part of a test, or another one ended the process before
			alone, err := fails(ctx, root, overlay, folder, []string{test}, timeout)
			if err != nil {
				return nil, err
			}
			failed[test] = alone[test]
		}
	}
	return failed, nil
}

// runTests runs tests of one package. It returns whether each failed that has ended, or
// has ended the process.
func runTests(
	ctx context.Context, root, overlay, folder string, tests []string, timeout time.Duration,
) (failed map[string]bool, said string, err error) {
	pattern := "^(" + strings.Join(tests, "|") + ")$"
	if len(tests) == 1 {
		pattern = "^" + strings.ReplaceAll(tests[0], "/", "$/^") + "$"
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-vet=off", "-count=1", "-overlay", overlay,
		"-timeout", timeout.String(), "-run", pattern, "./"+filepath.ToSlash(folder))
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "NEARCACHE_REQUIRE_REDIS=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, "", err
	}
	failed = map[string]bool{}
	running := map[string]bool{}
	var output strings.Builder
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct{ Action, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &event) != nil {
			continue
		}
		output.WriteString(event.Output)
		if !slices.Contains(tests, event.Test) {
			continue // a part of a test, or the whole of one
		}
		switch event.Action {
		case "run":
			running[event.Test] = true
		case "pass", "skip", "fail":
			failed[event.Test] = event.Action == "fail"
			delete(running, event.Test)
		}
	}
	if err != nil && len(running) == 1 {
		for test := range running { // it hung, or ended the process
			failed[test] = true
		}
	}
	return failed, output.String() + stderr.String(), nil
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
