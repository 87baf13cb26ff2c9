package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each mutation leaves a package that compiles, so that what its tests see is the
// mutation.
func TestMutationsCompile(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	exports := exportData(t, root)
	checkers := map[string]*checker{} // by folder
	for _, m := range mutations {
		folder := filepath.Dir(m.file)
		c := checkers[folder]
		if c == nil {
			c = newChecker(t, root, folder, exports)
			checkers[folder] = c
		}
		changed, err := m.apply(root)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		if err := c.check(filepath.Base(m.file), changed); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

// exportData returns the files of export data of all packages that the module needs.
func exportData(t *testing.T, root string) map[string]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = file
	}
	return exports
}

// checker checks the types of one package, with one of its files changed.
type checker struct {
	fset  *token.FileSet
	files map[string]*ast.File
	types types.Config
}

func newChecker(t *testing.T, root, folder string, exports map[string]string) *checker {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{range .GoFiles}}{{.}} {{end}}`, "./"+filepath.ToSlash(folder))
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{fset: token.NewFileSet(), files: map[string]*ast.File{}}
	for _, name := range strings.Fields(string(out)) {
		if c.files[name], err = parser.ParseFile(c.fset, filepath.Join(root, folder, name), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	c.types.Importer = importer.ForCompiler(c.fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(exports[path])
	})
	return c
}

func (c *checker) check(name string, changed []byte) error {
	mutated, err := parser.ParseFile(c.fset, name, bytes.NewReader(changed), 0)
	if err != nil {
		return err
	}
	files := []*ast.File{mutated}
	for other, file := range c.files {
		if other != name {
			files = append(files, file)
		}
	}
	_, err = c.types.Check(files[0].Name.Name, c.fset, files, nil)
	return err
}
