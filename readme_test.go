package nearcache_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReadmeACL gives a user the rights that the README names and no others, and
// sees that everything works.
func TestReadmeACL(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()

	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	rule := regexp.MustCompile("`(ACL SETUSER app [^`]+)`").FindSubmatch(readme)
	require.NotNil(t, rule, "the README names no ACL")
	var command []any
	for _, word := range strings.Fields(string(rule[1])) {
		command = append(command, word)
	}
	require.NoError(t, raw.Do(ctx, command...).Err())

	connection := server.addr + ",user=app,password=password"
	a, b := join(t, src.load, connection), join(t, src.load, connection)
	b.get(t, "red/1", "blue/2", "/3")
	require.NoError(t, a.items.Remove(ctx, "/3"))
	require.NoError(t, a.items.ClearRegion(ctx, "red"))
	barrier(t, raw, a, b)
	assert.False(t, b.held("/3"))
	assert.False(t, b.held("red/1"))
	assert.True(t, b.held("blue/2"))
	assert.Zero(t, b.bp.Stats().Gaps)
}
