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
	packages, err := testPackages(root)
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
		for _, test := range m.tests {
			name, _, _ := strings.Cut(test, "/")
			switch folder, found := packages[name]; {
			case !found:
				t.Errorf("%s: there is no %s", m.name, test)
			case folder == ambiguous:
				t.Errorf("%s: there are several tests named %s", m.name, test)
			}
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
