package systemtest

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

const (
	defaultChannel  = "nearcache"
	defaultPosition = "{nearcache}:position"
)

// head is how every invalidation starts: magic, kind and a publisher's identity.
const head = "NRC\x01" + "I" + "another instance"

// message returns a whole invalidation. The lengths are under 128, where a
// uvarint is one byte.
func message(previous, own, body string) string {
	return head + counted(previous) + counted(own) + body
}

func counted(s string) string { return string(binary.AppendUvarint(nil, uint64(len(s)))) + s }

// linked returns an invalidation that fits the chain, and has Redis know its
// position.
func linked(t *testing.T, raw *redis.Client, body string) string {
	t.Helper()
	ctx := context.Background()
	previous, err := raw.Get(ctx, defaultPosition).Result()
	require.NoError(t, err)
	sum := sha1.Sum([]byte(previous))
	own := hex.EncodeToString(sum[:])
	require.NoError(t, raw.Set(ctx, defaultPosition, own, 0).Err())
	return message(previous, own, body)
}

// TestBytesOnTheChannel publishes what no instance of this version would, and
// checks what is evicted, what is counted, and that the channel works on.
func TestBytesOnTheChannel(t *testing.T) {
	t.Parallel()
	const none, some, numbersOnly, all = 0, 1, 2, 3 // what is evicted
	position := strings.Repeat("a", 40)
	fixed := func(payload string) func(*testing.T, *redis.Client) string {
		return func(*testing.T, *redis.Client) string { return payload }
	}
	fitting := func(body string) func(*testing.T, *redis.Client) string {
		return func(t *testing.T, raw *redis.Client) string { return linked(t, raw, body) }
	}
	tests := []struct {
		name    string
		payload func(*testing.T, *redis.Client) string
		evicted int
		counter func(nearcache.BackplaneStats) uint64
	}{
		{"nothing", fixed(""), none, foreign},
		{"a text", fixed("hello"), none, foreign},
		{"a part of the magic", fixed("NRC"), none, foreign},
		{"another magic", fixed("NRC\x02" + head[4:]), none, foreign},
		{"bytes that are no text", fixed("\xff\x00\xfe"), none, foreign},
		{"a notice", fixed("NRC\x01" + "N" + head[5:] + "anything"), none, received},

		{"only the magic", fixed("NRC\x01"), all, undecodable},
		{"the magic and junk", fixed("NRC\x01\xff\xff junk"), all, undecodable},
		{"an unknown kind", fixed("NRC\x01" + "X" + head[5:] + counted(position)), all, undecodable},
		{"no positions", fixed(head), all, undecodable},
		{"a position cut short", fixed(head + "\x28aa"), all, undecodable},
		{"no own position", fixed(message(position, "", "\x01")), all, undecodable},

		{"a position that does not fit", fixed(message(position, strings.Repeat("b", 40), "\x01")), all, gaps},
		{"no position before it", fixed(message("", position, "\x01")), all, gaps},

		{"an unknown operation", fitting("\x01\x63"), all, undecodable},
		{"a known and an unknown operation", fitting("\x01\x03" + counted("items") + "\x63"), all, undecodable},
		{"an unknown body version", fitting("\x02\x04"), all, undecodable},
		{"no body", fitting(""), all, undecodable},
		{"a key cut short", fitting("\x01\x01" + counted("items") + "\x01\x7f/1"), all, undecodable},

		{"no operations", fitting("\x01"), none, applied},
		{"a key", fitting("\x01\x01" + counted("items") + "\x01" + counted("red/1")), some, applied},
		{"a region", fitting("\x01\x02" + counted("items") + "\x01" + counted("red")), some, applied},
		{"a cache that nobody has", fitting("\x01\x03" + counted("unknown")), none, applied},
		{"a key that is no number", fitting("\x01\x01" + counted("numbers") + "\x01" + counted("seven")), numbersOnly, applied},
		{"everything", fitting("\x01\x04"), all, applied},
	}
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, raw := newSource(), rawClient(t, addr)
		a, b := join(t, src.load, addr), join(t, src.load, addr)
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				require.NoError(t, a.items.Remove(ctx, "/1")) // mends what the last test broke
				barrier(t, raw, a, b)
				b.get(t, "red/1", "/1")
				_ = b.do("get-number", "7")
				before := test.counter(b.bp.Stats())

				require.NoError(t, raw.Publish(ctx, defaultChannel, test.payload(t, raw)).Err())
				eventually(t, "it is counted", func() bool { return test.counter(b.bp.Stats()) > before })
				barrier(t, raw, a, b)
				assert.Equal(t, test.evicted == none || test.evicted == numbersOnly, b.held("red/1"))
				assert.Equal(t, test.evicted != all, b.held("/1"))
				assert.Equal(t, test.evicted == none || test.evicted == some, b.do("peek-number", "7").Held)

				// A broken message costs the next one too; then all is as before.
				require.NoError(t, a.items.Remove(ctx, "/2"))
				barrier(t, raw, a, b)
				b.get(t, "red/1", "/1")
				missed := gaps(b.bp.Stats())
				require.NoError(t, a.items.Remove(ctx, "/1"))
				barrier(t, raw, a, b)
				assert.False(t, b.held("/1"))
				assert.True(t, b.held("red/1"))
				assert.Equal(t, missed, gaps(b.bp.Stats()))
			})
		}
	})
}

// TestEchoOnTheOwnChannel looks at the answer to a probe as it travels.
func TestEchoOnTheOwnChannel(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	listening := raw.PSubscribe(ctx, "{nearcache}:*")
	defer listening.Close()
	_, err := listening.Receive(ctx)
	require.NoError(t, err)

	join(t, src.load, server.addr)
	reply, err := listening.ReceiveMessage(ctx)
	require.NoError(t, err)
	history, position := "", raw.Get(ctx, defaultPosition).Val()
	for _, line := range strings.Split(raw.Info(ctx, "replication").Val(), "\r\n") {
		if id, found := strings.CutPrefix(line, "master_replid:"); found {
			history = id
		}
	}
	id := reply.Payload[5:21]
	require.Equal(t, "{nearcache}:"+hex.EncodeToString([]byte(id)), reply.Channel)
	nonce := reply.Payload[len(reply.Payload)-16:]
	require.Len(t, history, 40)
	require.Equal(t, "NRC\x01E"+id+counted("")+counted(position)+"\x01"+counted(history)+counted(nonce), reply.Payload)
}

// TestHostilePublishers sends an instance what users with fewer rights than it can
// publish, and with the same: messages that only an instance's own channel or the other
// one carries, and echoes of probes that nobody has sent, dated by the clocks as nonces
// once were. None of them clears anything, drops the lease, or logs a line.
func TestHostilePublishers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	var log lockedBuffer
	in := joinWith(t, src.load, nearcache.BackplaneOptions{
		RedisConnectionString: server.addr, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, in.items.Remove(ctx, "/1"))
	in.get(t, "/1", "/2")
	own := raw.PubSubChannels(ctx, "{nearcache}:*").Val()
	require.Len(t, own, 1)
	id, err := hex.DecodeString(strings.TrimPrefix(own[0], "{nearcache}:"))
	require.NoError(t, err)
	position := raw.Get(ctx, defaultPosition).Val()
	other := strings.Repeat("b", 40)
	echo := func(position, history, nonce string) string {
		return "NRC\x01E" + string(id) + counted("") + counted(position) + "\x01" + counted(history) + counted(nonce)
	}
	dated := func(ahead time.Duration) string {
		at := uint64(time.Now().Add(ahead).UnixNano())
		return string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, at), at))
	}
	before, lines := in.bp.Stats(), log.String()

	sent := 0
	send := func(channel, payload string) {
		require.NoError(t, raw.Publish(ctx, channel, payload).Err())
		sent++
	}
	for range 50 {
		for _, position := range []string{position, other} {
			for _, nonce := range []string{"", dated(0), dated(time.Hour), dated(-time.Hour), "0123456789abcdef"} {
				send(defaultChannel, echo(position, other, nonce))
				send(own[0], echo(position, other, nonce))
			}
			send(own[0], message(position, other, "\x01\x04"))
		}
		for _, payload := range []string{"", "junk", "NRC\x01", "NRC\x01E", "NRC\x01X" + string(id), echo(position, "", "")[:60]} {
			send(own[0], payload)
		}
	}
	eventually(t, "all of it has come", func() bool { return in.bp.Stats().Foreign == before.Foreign+uint64(sent) })
	after := in.bp.Stats()
	assert.Equal(t, before.Clears, after.Clears)
	assert.Zero(t, after.Lease.Lost)
	assert.Zero(t, after.Lease.ClockSteps)
	assert.Zero(t, after.Applied)
	assert.Equal(t, nearcache.StateLive, after.State)
	assert.True(t, in.held("/1"))
	assert.Equal(t, lines, log.String())

	require.NoError(t, in.items.Remove(ctx, "/1"))
	barrier(t, raw, in)
	assert.True(t, in.held("/2"), "the chain goes on")
	assert.Equal(t, before.Clears, in.bp.Stats().Clears)
}

// TestIdentityOfEachSubscription looks at the own channel of one subscription and of the
// next.
func TestIdentityOfEachSubscription(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := startRedis(t)
	raw := server.client()
	in := join(t, newSource().load, server.addr+",name=in")
	known := map[string]bool{}
	for n := range 3 {
		var now []string
		eventually(t, "there is one own channel", func() bool {
			now = raw.PubSubChannels(ctx, "{nearcache}:*").Val()
			return len(now) == 1 && in.bp.Stats().Subscribed == uint64(n+1)
		})
		require.False(t, known[now[0]], "the subscription has a new one")
		known[now[0]] = true
		require.NoError(t, in.items.Remove(ctx, "/1"))
		barrier(t, raw, in)
		require.EqualValues(t, n+1, in.bp.Stats().Own)
		require.Equal(t, 1, killConnections(t, raw, "pubsub", "in"))
		eventually(t, "it subscribes again", func() bool { return in.bp.Stats().Subscribed == uint64(n+2) })
	}
	assert.Zero(t, in.bp.Stats().Clears.Gaps())
}

func received(s nearcache.BackplaneStats) uint64    { return s.Received }
func applied(s nearcache.BackplaneStats) uint64     { return s.Applied }
func foreign(s nearcache.BackplaneStats) uint64     { return s.Foreign }
func undecodable(s nearcache.BackplaneStats) uint64 { return s.Clears.Undecodable }
func gaps(s nearcache.BackplaneStats) uint64        { return s.Clears.Gaps() }

// TestSeparateBackplanes joins two applications to one Redis that are not to hear
// of each other, though their caches have the same names.
func TestSeparateBackplanes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name          string
		first, second nearcache.BackplaneOptions // the connection strings get the address before them
		channels      [2]string
	}{
		{
			name:     "two channels",
			first:    nearcache.BackplaneOptions{Channel: "shop"},
			second:   nearcache.BackplaneOptions{Channel: "blog"},
			channels: [2]string{"shop", "blog"},
		},
		{
			name:     "two databases",
			second:   nearcache.BackplaneOptions{RedisConnectionString: ",defaultDatabase=3"},
			channels: [2]string{"nearcache", "nearcache@3"},
		},
		{
			name:     "two prefixes",
			first:    nearcache.BackplaneOptions{RedisConnectionString: ",channelPrefix=shop."},
			second:   nearcache.BackplaneOptions{RedisConnectionString: ",channelPrefix=blog."},
			channels: [2]string{"shop.nearcache", "blog.nearcache"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				src, raw := newSource(), rawClient(t, addr)
				var apps [2][]*instance
				for i, options := range []nearcache.BackplaneOptions{test.first, test.second} {
					options.RedisConnectionString = addr + options.RedisConnectionString
					for range 2 {
						in := joinWith(t, src.load, options)
						assert.Equal(t, test.channels[i], in.bp.Stats().Channel)
						in.get(t, "/1", "/2")
						apps[i] = append(apps[i], in)
					}
				}
				first, second := apps[0], apps[1]

				require.NoError(t, first[0].items.Remove(ctx, "/1"))
				require.NoError(t, second[0].items.Remove(ctx, "/2"))
				require.NoError(t, first[0].items.Remove(ctx, "/1"))
				barrier(t, raw, first...)
				barrier(t, raw, second...)
				for _, in := range first {
					assert.False(t, in.held("/1"))
					assert.True(t, in.held("/2"))
				}
				for _, in := range second {
					assert.True(t, in.held("/1"))
					assert.False(t, in.held("/2"))
				}
				require.NoError(t, first[0].bp.ClearAll(ctx))
				barrier(t, raw, first...)
				barrier(t, raw, second...)
				assert.False(t, first[1].held("/2"))
				assert.True(t, second[1].held("/1"))
				for _, in := range append(first, second...) {
					assert.Zero(t, in.bp.Stats().Clears.Gaps())
				}
			})
		})
	}
}

// TestPositionLost changes the channel's position behind the library's back.
func TestPositionLost(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		lose func(ctx context.Context, raw *redis.Client) error
	}{
		{"FLUSHALL", func(ctx context.Context, raw *redis.Client) error { return raw.FlushAll(ctx).Err() }},
		{"overwritten", func(ctx context.Context, raw *redis.Client) error {
			return raw.Set(ctx, defaultPosition, "nonsense", 0).Err()
		}},
		{"restored from long ago", func(ctx context.Context, raw *redis.Client) error {
			return raw.Set(ctx, defaultPosition, strings.Repeat("0", 40), 0).Err()
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				src, raw := newSource(), rawClient(t, addr)
				a, b := join(t, src.load, addr), join(t, src.load, addr)
				b.get(t, "/1", "/other")
				require.NoError(t, test.lose(ctx, raw))

				require.NoError(t, a.items.Remove(ctx, "/1"))
				barrier(t, raw, a, b)
				assert.False(t, b.held("/1"))
				assert.False(t, b.held("/other"), "what the lost position stood for is unknown")
				assert.EqualValues(t, 1, b.bp.Stats().Clears.Gaps())

				b.get(t, "/1", "/other")
				require.NoError(t, a.items.Remove(ctx, "/1"))
				barrier(t, raw, a, b)
				assert.False(t, b.held("/1"))
				assert.True(t, b.held("/other"), "the chain goes on")
				assert.EqualValues(t, 1, b.bp.Stats().Clears.Gaps())
			})
		})
	}
}

// TestPositionOfWrongType puts another kind of value where the position is.
func TestPositionOfWrongType(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, raw := newSource(), rawClient(t, addr)
		a, b := join(t, src.load, addr), join(t, src.load, addr)
		b.get(t, "/1")
		require.NoError(t, raw.Del(ctx, defaultPosition).Err())
		require.NoError(t, raw.LPush(ctx, defaultPosition, "x").Err())

		err := a.items.Remove(ctx, "/1")
		assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
		assert.ErrorContains(t, err, "WRONGTYPE")
		assert.True(t, b.held("/1"))

		require.NoError(t, raw.Del(ctx, defaultPosition).Err())
		require.NoError(t, within(t, "Flush returns", func() error { return a.bp.Flush(ctx) }))
		barrier(t, raw, a, b)
		assert.False(t, b.held("/1"))
		require.NoError(t, a.items.Remove(ctx, "/1"))
	})
}
