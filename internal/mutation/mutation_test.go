package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The list keeps up with the source and with the documentation; that the tests
// it names do fail is what the command shows.
func TestMutationsApply(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range mutations {
		if names[m.name] {
			t.Errorf("there are two mutations named %q", m.name)
		}
		names[m.name] = true
		if _, err := m.apply(root); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if len(m.tests) == 0 {
			t.Errorf("%s: no test is named", m.name)
		}
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "proof.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), table()) {
		t.Error("docs/proof.md does not have the table that go run ./internal/mutation -list prints")
	}
}
