// Package documents tests that what the documents say of the code is so.
package documents

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// root is the module's root.
const root = "../.."

// What the documents say a test shows has that test.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	t.Chdir(root)
	var sources strings.Builder
	for _, pattern := range []string{"*_test.go", "internal/*/*_test.go", "internal/*/*/*_test.go", "nearcachetest/*_test.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			sources.Write(source)
		}
	}
	documents, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, documents)
	for _, document := range documents {
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(text), -1) {
			assert.Contains(t, sources.String(), "func "+name+"(", document)
		}
	}
}

// TestOperatingIsComplete sees that docs/operating.md has every log line, every kind and
// cause of an event, and every field of the statistics.
func TestOperatingIsComplete(t *testing.T) {
	t.Chdir(root)
	page, err := os.ReadFile("docs/operating.md")
	require.NoError(t, err)
	text := string(page)

	var lines []string
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	nested, err := filepath.Glob("internal/*/*.go")
	require.NoError(t, err)
	for _, file := range append(files, nested...) {
		if !strings.HasSuffix(file, "_test.go") && !strings.Contains(filepath.ToSlash(file), "/mutation/") {
			lines = append(lines, logLines(t, file)...)
		}
	}
	assert.Greater(t, len(lines), 30, "log lines are no longer found")
	for _, line := range lines {
		// The rest, behind these, is advice.
		head := strings.TrimSpace(line[:strings.IndexAny(line+";", ";:(")])
		assert.True(t, strings.Contains(text, head), "a log line: %s", head)
	}

	for kind := nearcache.EventState; kind.String() != "unknown"; kind++ {
		assert.True(t, strings.Contains(text, "`Event"+camel(kind.String())+"`"), "an event: %v", kind)
	}
	for cause := nearcache.ClearCauseStart; cause.String() != "unknown"; cause++ {
		assert.True(t, strings.Contains(text, "`ClearCause"+camel(cause.String())+"`"), "a cause: %v", cause)
	}
	for _, stats := range []any{
		nearcache.BackplaneStats{}, nearcache.ClearStats{}, nearcache.LeaseStats{}, nearcache.CacheStats{},
		nearcache.SharedStats{}, nearcache.MissStats{}, nearcache.EvictionStats{},
		nearcache.InvalidationStats{}, nearcache.SkipStats{},
	} {
		for _, field := range reflect.VisibleFields(reflect.TypeOf(stats)) {
			name := regexp.MustCompile("`([A-Za-z]+\\.)?" + field.Name + "`")
			assert.True(t, name.MatchString(text), "a field of %T: %s", stats, field.Name)
		}
	}
}

// camel returns the words of a name in lower case as a Go identifier has them.
func camel(words string) string {
	var b strings.Builder
	for word := range strings.FieldsSeq(words) {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// logLines returns the texts of a file that are logged, without "nearcache: ".
func logLines(t *testing.T, file string) (lines []string) {
	t.Helper()
	source, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	ast.Inspect(source, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		name := ""
		switch f := call.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		loggers := []string{"Debug", "Info", "Warn", "Error", "log", "tell", "tellIf"}
		hint := name == "hint" || name == "warn"
		if !hint && !slices.Contains(loggers, name) {
			return true
		}
		for _, arg := range call.Args {
			line, said := strings.CutPrefix(literal(arg), "nearcache: ")
			if line != "" && (said || hint) {
				lines = append(lines, line)
				break // what follows are names of attributes
			}
		}
		return true
	})
	return lines
}

// literal returns the text of a string literal, or of several that are added up; of
// anything else, nothing.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err == nil && e.Kind == token.STRING {
			return text
		}
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}

// TestReadmeProgram sees that the README's program is that of examples/quickstart, which
// is compiled with everything else and run by the gate.
func TestReadmeProgram(t *testing.T) {
	t.Chdir(root)
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	program, err := os.ReadFile("examples/quickstart/main.go")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(readme), "\r\n", "\n")
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(text, -1)
	require.Len(t, blocks, 1, "the README has one program")
	assert.Equal(t, strings.ReplaceAll(string(program), "\r\n", "\n"), blocks[0][1])
}
