package systemtest

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// documentedRights returns the command that docs/redis.md names for a user.
func documentedRights(t *testing.T, user string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs", "redis.md"))
	require.NoError(t, err)
	rule := regexp.MustCompile("(?m)^(ACL SETUSER " + user + " .+)$").FindSubmatch(page)
	require.NotNil(t, rule, "docs/redis.md names no rights of %s", user)
	return strings.TrimSpace(string(rule[1]))
}

// grant has Redis run a command that gives rights.
func grant(t *testing.T, raw *redis.Client, acl string) {
	t.Helper()
	var command []any
	for word := range strings.FieldsSeq(acl) {
		command = append(command, word)
	}
	require.NoError(t, raw.Do(context.Background(), command...).Err())
}

// TestReadmeACL gives a user the rights that docs/redis.md names and no others, and
// sees that everything works.
func TestReadmeACL(t *testing.T) {
	t.Parallel()
	acl := documentedRights(t, "app")
	tests := []struct{ name, acl, options string }{
		{"database 0", acl, ""},
		{"database 2", acl + " &nearcache@2 +select", ",defaultDatabase=2"},
		{"with a client name", acl + " +client|setname", ",name=orders"},
		{"with a prefix", strings.ReplaceAll(acl, "nearcache", "shop.nearcache"), ",channelPrefix=shop."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			src, server := newSource(), startRedis(t)
			grant(t, server.client(), test.acl)

			connection := server.addr + ",user=app,password=password" + test.options
			a, b := join(t, src.load, connection), join(t, src.load, connection)
			b.get(t, "red/1", "blue/2", "/3")
			require.NoError(t, a.items.Remove(ctx, "/3"))
			require.NoError(t, a.items.ClearRegion(ctx, "red"))
			eventually(t, "both are applied", func() bool { return !b.held("/3") && !b.held("red/1") })
			assert.True(t, b.held("blue/2"))
			assert.Zero(t, b.bp.Stats().Clears.Gaps())
		})
	}
}
