package documents

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The code in docs/recipes.md is that of programs and examples, which are compiled
// and run: each block names a file and a part of it, between "// recipe: name" and
// "// recipe end", and each part is shown.
func TestRecipesAreTheirPrograms(t *testing.T) {
	t.Chdir(root)
	files, err := filepath.Glob("examples/*/*.go")
	require.NoError(t, err)
	part := regexp.MustCompile(`(?ms)^\t*// recipe: ([^\n]+)\n(.*?)^\t*// recipe end$`)
	parts := map[string]string{}
	for _, file := range append(files, "example_recipes_test.go") {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range part.FindAllStringSubmatch(string(source), -1) {
			name := filepath.ToSlash(file) + ": " + m[1]
			require.NotContains(t, parts, name, "two parts have one name")
			parts[name] = outdent(m[2])
		}
	}

	document, err := os.ReadFile("docs/recipes.md")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(document), "\r\n", "\n")
	block := regexp.MustCompile("(?ms)^<!-- (.+?) -->\n```go\n(.*?)^```$")
	blocks := block.FindAllStringSubmatch(text, -1)
	assert.Len(t, blocks, strings.Count(text, "```go"), "a block does not say where its code is from")
	shown := map[string]bool{}
	for _, m := range blocks {
		shown[m[1]] = true
		if assert.Contains(t, parts, m[1], "there is no such part") {
			assert.Equal(t, parts[m[1]], m[2], m[1])
		}
	}
	for name := range parts {
		assert.True(t, shown[name], "%s is not in docs/recipes.md", name)
	}

	for _, command := range regexp.MustCompile(`go run (\S+)`).FindAllStringSubmatch(text, -1) {
		assert.DirExists(t, command[1])
	}
}

// outdent takes off the blank lines around code, and the tabs that all its lines have.
func outdent(code string) string {
	code = strings.Trim(strings.ReplaceAll(code, "\r\n", "\n"), "\n")
	tabs := len(code) - len(strings.TrimLeft(code, "\t"))
	lines := strings.Split(code, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, strings.Repeat("\t", tabs))
	}
	return strings.Join(lines, "\n") + "\n"
}
