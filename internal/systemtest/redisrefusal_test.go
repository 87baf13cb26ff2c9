package systemtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// TestSharedGetsWhileConnectionsAreRefused has Redis refuse new connections, in every
// way, and closes those that there are. Gets are answered by the source, and all is as
// before when connections are accepted again.
func TestSharedGetsWhileConnectionsAreRefused(t *testing.T) {
	t.Parallel()
	const rights = "on >" + realityPassword + " resetchannels &* ~* +@all"
	type place struct {
		*testing.T
		raw  *redis.Client
		path *proxy
		addr string
	}
	user := func(rules string) func(place) {
		return func(p place) {
			p.Helper()
			allow(p.T, p.raw, rules)
		}
	}
	config := func(name, value string) func(place) {
		return func(p place) {
			p.Helper()
			require.NoError(p, p.raw.ConfigSet(context.Background(), name, value).Err())
		}
	}
	instead := func(s *scripted) func(place) {
		return func(p place) { p.path.leadTo(startScripted(p.T, s).addr) }
	}
	back := func(p place) { p.path.leadTo(p.addr) }
	// It hangs up at the first command, or at that after the one that authenticates.
	hangUp := func(atOnce bool) *scripted {
		return &scripted{reply: func(command []string) string {
			if atOnce || command[0] != "HELLO" || !slices.Contains(command, realityPassword) {
				return ""
			}
			return asServer("standalone", command)
		}}
	}
	tests := []struct {
		name          string
		database      string
		refuse, allow func(place)
		says          string
	}{
		{name: "another password", refuse: user("resetpass >another"), allow: user("resetpass >" + realityPassword), says: "WRONGPASS"},
		{name: "user deleted", refuse: func(p place) {
			require.NoError(p, p.raw.Do(context.Background(), "ACL", "DELUSER", realityUser).Err())
		}, allow: user(rights), says: "WRONGPASS"},
		{name: "user switched off", refuse: user("off"), allow: user("on"), says: "WRONGPASS"},
		{name: "no rights", refuse: user("-@all"), allow: user("+@all"), says: "NOPERM"},
		{name: "no right to the database", database: ",defaultDatabase=1", refuse: user("-select"), allow: user("+select"), says: "NOPERM"},
		{name: "too many clients", refuse: config("maxclients", "1"), allow: config("maxclients", "1000"), says: "max number of clients"},
		{name: "protected mode", refuse: instead(&scripted{greeting: "-DENIED Redis is running in protected mode because\r\n"}), allow: back, says: "DENIED"},
		{name: "an end at once", refuse: instead(hangUp(true)), allow: back, says: ""},
		{name: "an end after HELLO", refuse: instead(hangUp(false)), allow: back, says: ""},
		{name: "no TLS but rubbish", refuse: instead(&scripted{greeting: "\x15\x03\x03\x00\x02\x02\x28"}), allow: back, says: "TLS"},
		{name: "loading", refuse: instead(&scripted{reply: func([]string) string {
			return "-LOADING Redis is loading the dataset in memory\r\n"
		}}), allow: back, says: "LOADING"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server, loads := startRedis(t), newCountedLoads()
			p := place{t, server.client(), startProxy(t, server.addr), server.addr}
			user(rights)(p)
			var log lockedBuffer
			var failed lockedBuffer
			bp, err := nearcache.Connect(context.Background(), nearcache.BackplaneOptions{
				RedisConnectionString: p.path.addr + asRealityUser + test.database + impatient,
				Logger:                slog.New(slog.NewTextHandler(&log, nil)), CloseTimeout: 100 * time.Millisecond,
				OnEvent: func(e nearcache.Event) { _, _ = fmt.Fprintf(&failed, "%v %v\n", e.Kind, e.Err) },
			})
			require.NoError(t, err)
			t.Cleanup(func() { _ = within(t, "Close returns", bp.Close) })
			items, err := nearcache.New(bp, nearcache.Options[string, int]{
				Name: "items", Load: loads.load, Shared: &nearcache.SharedOptions[int]{Timeout: 2 * time.Second},
			})
			require.NoError(t, err)
			get := func(key string) {
				t.Helper()
				v, err := items.Get(t.Context(), key)
				require.NoError(t, err)
				require.Equal(t, 1, v)
			}
			get("before")
			eventually(t, "a value is stored", func() bool { return items.Stats().Shared.Stored == 1 })

			test.refuse(p)
			for _, kind := range []string{"normal", "pubsub"} {
				require.NoError(t, p.raw.Do(context.Background(), "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes").Err())
			}
			before := items.Stats().Shared.Errors
			for i := range 30 { // one after another, and some at once
				get(fmt.Sprint("during/", i))
			}
			assert.Greater(t, items.Stats().Shared.Errors, before)
			eventually(t, "the loss of the subscription is noticed", func() bool { return bp.State() != nearcache.StateLive })
			require.ErrorIs(t, items.Remove(t.Context(), "before"), nearcache.ErrUnconfirmed)
			eventually(t, "it says why", func() bool { return strings.Contains(failed.String(), test.says) })
			assert.Zero(t, bp.Stats().Panics)

			test.allow(p)
			require.NoError(t, within(t, "Flush returns", func() error { return bp.Flush(t.Context()) }))
			eventually(t, "it is live", func() bool { return bp.State() == nearcache.StateLive })
			stored, i := items.Stats().Shared.Stored, 0
			eventually(t, "values are stored again", func() bool {
				i++
				get(fmt.Sprint("after/", i))
				return items.Stats().Shared.Stored > stored
			})
			for _, text := range []string{log.String(), failed.String()} {
				assert.NotContains(t, text, realityPassword)
				for line := range strings.Lines(text) {
					notDoubled(t, line)
				}
			}
		})
	}
}

// notDoubled reports a text that says a thing twice.
func notDoubled(t *testing.T, text string) {
	t.Helper()
	seen := map[string]bool{}
	for _, part := range regexp.MustCompile(`: | \(|\n|\\n|"|\)`).Split(text, -1) {
		if len(part) > 20 {
			assert.False(t, seen[part], "%q says %q twice", text, part)
		}
		seen[part] = true
	}
}

// TestReasonsOfConnect is refused in every way, and shows what Connect says of it.
func TestReasonsOfConnect(t *testing.T) {
	t.Parallel()
	const secret = "hunter2hunter2"
	repeats := func(command []string) string {
		arguments := strings.NewReplacer("\n", " ", "\r", " ").Replace(strings.Join(command[1:], "' '"))
		return fmt.Sprintf("-ERR unknown command '%s', with args beginning with: '%s' \r\n", command[0], arguments)
	}
	scriptsFail := func(answer string) *scripted {
		return &scripted{reply: func(command []string) string {
			if reply := asServer("standalone", command); reply != "" {
				return reply
			}
			return "-" + answer + "\r\n"
		}}
	}
	tests := []struct {
		name, says string
		server     *scripted
		atOnce     bool // or it tries again until the connect timeout
	}{
		{"too many clients", "max number of clients reached", &scripted{greeting: "-ERR max number of clients reached\r\n"}, false},
		{"protected mode", "DENIED Redis is running in protected mode", &scripted{greeting: "-DENIED Redis is running in protected mode. " + strings.Repeat("Read this. ", 100) + "\r\n"}, true},
		{"hangs up", "hung up without a word", &scripted{reply: func([]string) string { return "" }}, false},
		{"speaks TLS", "set ssl=True", &scripted{greeting: "\x15\x03\x01\x00\x02\x02\x46"}, true},
		{"cluster", "a node of a Redis Cluster, which is not supported", scriptsFail("MOVED 12064 127.0.0.1:7001"), true},
		{"cluster with an open slot", "a node of a Redis Cluster, which is not supported", scriptsFail("ASK 12064 127.0.0.1:7001"), true},
		{"sentinel", "Redis Sentinel, which is not supported", &scripted{reply: func(command []string) string {
			if command[0] == "HELLO" {
				return asServer("sentinel", command)
			}
			return repeats(command)
		}}, true},
		{"sentinel without HELLO", "Redis Sentinel, which is not supported", &scripted{reply: func(command []string) string {
			if command[0] == "SUBSCRIBE" || command[0] == "AUTH" {
				return asServer("sentinel", command)
			}
			return repeats(command)
		}}, true},
		{"knows neither HELLO nor AUTH", "unknown command", &scripted{reply: repeats}, true},
		{"hangs up after it has repeated the password", "unknown command", &scripted{reply: func(command []string) string {
			if command[0] == "HELLO" {
				return repeats(command)
			}
			return ""
		}}, true},
		{"a replica, in a script before 7.0", "takes no writes", scriptsFail("ERR Error running script (call to f_e5b9c4): @user_script:4: @user_script: 4: -READONLY You can't write against a read only replica. "), false},
		{"a replica", "takes no writes", scriptsFail("READONLY You can't write against a read only replica. script: e5b9, on @user_script:4."), false},
		{"out of memory, in a script before 7.0", "takes no writes", scriptsFail("ERR Error running script (call to f_e5b9c4): @user_script:4: @user_script: 4: -OOM command not allowed when used memory > 'maxmemory'. "), false},
		{"a key of another kind, before 7.0", "delete it", scriptsFail("ERR Error running script (call to f_e5b9c4): @user_script:2: WRONGTYPE Operation against a key holding the wrong kind of value "), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := startScripted(t, test.server)
			options := ",password=" + secret + ",connectTimeout=300"
			if test.atOnce {
				options = ",password=" + secret + forever
			}
			err := connectError(t, nearcache.BackplaneOptions{RedisConnectionString: server.addr + options})
			assert.ErrorContains(t, err, test.says)
			assert.ErrorContains(t, err, server.addr)
			assert.NotContains(t, err.Error(), secret)
			assert.NotContains(t, err.Error(), "hunter2")
			assert.Less(t, len(err.Error()), 1000)
			notDoubled(t, err.Error())
		})
	}
}

// A port that speaks TLS, and a client that does not, and the other way round.
func TestReasonsWithTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := ca.startRedis(t, "127.0.0.1")

	t.Run("plain text to TLS", func(t *testing.T) {
		err := connectError(t, nearcache.BackplaneOptions{RedisConnectionString: server.addr + ",connectTimeout=500"})
		assert.ErrorContains(t, err, "ssl=True")
		notDoubled(t, err.Error())
	})
	t.Run("TLS to plain text", func(t *testing.T) {
		plain := startScripted(t, &scripted{greeting: "-ERR max number of clients reached\r\n"})
		err := connectError(t, nearcache.BackplaneOptions{RedisConnectionString: plain.addr + ",ssl=True" + forever})
		assert.ErrorContains(t, err, "ssl=False")
		assert.ErrorContains(t, err, "-ERR")
	})
	t.Run("certificates", func(t *testing.T) {
		err := connectError(t, nearcache.BackplaneOptions{Redis: &redis.UniversalOptions{
			Addrs: []string{server.addr}, TLSConfig: &tls.Config{RootCAs: newAuthority(t).pool()},
		}})
		assert.ErrorContains(t, err, "SSL_CERT_FILE")
		assert.NotContains(t, err.Error(), "does the port speak TLS")
		notDoubled(t, err.Error())
	})
}

// Writers are told that Redis does not answer, not how a connection ended.
func TestReasonsOfSilence(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	path := startProxy(t, server.addr)
	in := joinWith(t, newSource().load, nearcache.BackplaneOptions{
		RedisConnectionString: path.addr + ",connectTimeout=300,asyncTimeout=300", MaxStaleness: brief,
	})
	require.NoError(t, in.items.Remove(t.Context(), "/1"))
	path.hold()
	var errs []error
	for range 3 {
		err := in.items.Remove(t.Context(), "/1")
		require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
		errs = append(errs, err)
		inState(t, in, nearcache.StateNoLease)
	}
	for _, err := range errs {
		assert.NotContains(t, err.Error(), "closed network connection")
		assert.Regexp(t, "no answer|not heard", err.Error())
		notDoubled(t, err.Error())
	}
	path.resume()
}

// Where the server does not want CLIENT, connections have no name, and no command is
// denied without need.
func TestClientIsDenied(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	raw := server.client()
	require.NoError(t, raw.Do(t.Context(), "ACL", "SETUSER", "app", "on", ">secret", "&*", "~*", "+@all", "-client", "-@connection").Err())
	in := join(t, newSource().load, server.addr+",user=app,password=secret,name=app")
	require.NoError(t, in.items.Remove(t.Context(), "/1"))
	log, err := raw.Do(t.Context(), "ACL", "LOG").Slice()
	require.NoError(t, err)
	assert.Empty(t, log)

	scriptless := startScripted(t, &scripted{reply: func(command []string) string {
		if command[0] == "CLIENT" || command[0] == "HELLO" {
			return "-ERR unknown command\r\n"
		}
		if reply := asServer("", command); reply != "" {
			return reply
		}
		return "-NOPERM this far, and no further\r\n"
	}})
	err = connectError(t, nearcache.BackplaneOptions{RedisConnectionString: scriptless.addr + ",name=app" + forever})
	assert.ErrorContains(t, err, "this far")
	assert.Positive(t, scriptless.commands("CLIENT"))
	bad := join(t, newSource().load, server.addr+",name=a b") // no name that Redis takes
	require.NoError(t, bad.items.Remove(t.Context(), "/1"))
}

// TestSharedOverALongWay connects over a path where a new connection takes longer than
// a request may. It is made all the same, and used.
func TestSharedOverALongWay(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	tests := []struct {
		name   string
		server *redisProcess
		delay  time.Duration
		tls    *tls.Config
	}{
		{"TLS", ca.startRedis(t, "127.0.0.1"), 64 * time.Millisecond, &tls.Config{RootCAs: ca.pool(), ServerName: "127.0.0.1"}},
		{"plain text", startRedis(t), 95 * time.Millisecond, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := startProxy(t, test.server.addr)
			bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
				Redis:  &redis.UniversalOptions{Addrs: []string{path.addr}, TLSConfig: test.tls},
				Logger: discard, MaxStaleness: patience, CloseTimeout: time.Second,
			})
			require.NoError(t, err)
			t.Cleanup(func() { _ = within(t, "Close returns", bp.Close) })
			items, err := nearcache.New(bp, nearcache.Options[string, int]{
				Name: "items", Load: newCountedLoads().load, Shared: &nearcache.SharedOptions[int]{},
			})
			require.NoError(t, err)
			path.slowDown(test.delay)
			i := 0
			eventually(t, "a value is stored", func() bool {
				i++
				_, err := items.Get(t.Context(), fmt.Sprint(i))
				require.NoError(t, err)
				return items.Stats().Shared.Stored > 0
			})
			path.resume()
		})
	}
}

// connections returns how many connections a name has.
func connections(t *testing.T, raw *redis.Client, name string) int {
	t.Helper()
	list, err := raw.Do(context.Background(), "CLIENT", "LIST").Text()
	require.NoError(t, err)
	return strings.Count(list, " name="+name+" ")
}

// Connections that Redis has closed while they were idle cost no request.
func TestSharedIdleConnectionsDie(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	raw := server.client()
	a := joinShared(t, server.addr+",name=dies", newCountedLoads().load, nil)
	for round := range 3 {
		for i := range 20 {
			a.get(t, fmt.Sprint(round, "/", i))
		}
		a.stored(t, uint64(20*(round+1)))
		require.Positive(t, killConnections(t, raw, "normal", "dies"))
	}
	a.get(t, "last")
	require.Zero(t, a.stats().Errors)
}

// A dial that hangs does not keep Close.
func TestSharedCloseWhileDialling(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	path := startProxy(t, server.addr)
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: path.addr, Logger: discard, CloseTimeout: time.Second, MaxStaleness: patience,
	})
	require.NoError(t, err)
	items, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "items", Load: newCountedLoads().load, Shared: &nearcache.SharedOptions[int]{Timeout: brief},
	})
	require.NoError(t, err)
	path.hold()
	_, err = items.Get(t.Context(), "1")
	require.NoError(t, err)
	require.NoError(t, within(t, "Close returns", bp.Close))
}

// TestSharedBulkRemovalIsSplit removes more keys than one script may touch.
func TestSharedBulkRemovalIsSplit(t *testing.T) {
	t.Parallel()
	const n = 10_000
	server := startRedis(t, "--slowlog-log-slower-than", "0", "--slowlog-max-len", "10000")
	raw := server.client()
	a := joinShared(t, server.addr, newCountedLoads().load, nil)
	b := joinShared(t, server.addr, newCountedLoads().load, nil)
	require.Equal(t, 1, b.get(t, "0"))
	b.stored(t, 1)
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	require.NoError(t, a.items.Remove(t.Context(), keys...))
	require.Zero(t, raw.Exists(t.Context(), "{nearcache}:value:items:0").Val())
	eventually(t, "B hears of it", func() bool { _, held := b.items.Peek("0"); return !held })
	scripts, err := raw.SlowLogGet(t.Context(), -1).Result()
	require.NoError(t, err)
	most, all := 0, 0
	for _, s := range scripts {
		if len(s.Args) < 3 || !strings.HasPrefix(strings.ToLower(s.Args[0]), "eval") {
			continue
		}
		var of int
		_, err := fmt.Sscan(s.Args[2], &of)
		require.NoError(t, err)
		most = max(most, of)
		if of > 3 {
			all += of - 2
		}
	}
	assert.LessOrEqual(t, most, 2+2*256)
	assert.GreaterOrEqual(t, all, 2*n)
	assert.Zero(t, a.bp.Stats().PublishFailures)
	assert.Zero(t, b.bp.Stats().Clears.Gaps())
}
