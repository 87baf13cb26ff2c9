package fakebus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// within runs test in a bubble with a deployment of two instances, of which the
// first has a subscription.
func within(t *testing.T, o Options, test func(*testing.T, *Bus, *Subscription)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Instances = 2
		b := New(o)
		defer b.Close()
		s, err := b.Instance(0).Subscribe(t.Context(), transport.Identity{Echo: "head,"})
		require.NoError(t, err)
		test(t, b, s)
	})
}

func saying(body string) transport.Message {
	return transport.Message{Head: "head,", Nonce: body, Body: body}
}

func publish(t *testing.T, b *Bus, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		require.NoError(t, b.Instance(1).Publish(t.Context(), saying(body)))
	}
}

// inbox returns what arrives within a time, and what ended it.
func inbox(s *Subscription, within time.Duration) (payloads []string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var payload string
			if payload, _, err = s.Receive(); err != nil {
				return
			}
			payloads = append(payloads, payload)
		}
	}()
	select {
	case <-done:
		return payloads, err
	case <-time.After(within):
		s.Close()
		<-done
		return payloads, nil
	}
}

// bodies returns what comes behind the positions of messages of the tests here.
func bodies(payloads []string) string {
	var all []string
	for _, p := range payloads {
		_, _, body := split(p)
		if strings.HasPrefix(body, "\x01") {
			body = "echo"
		}
		all = append(all, body)
	}
	return strings.Join(all, " ")
}

func split(payload string) (previous, own, body string) {
	rest := payload[len("head,"):]
	n := int(rest[0])
	previous, rest = rest[1:1+n], rest[1+n:]
	n = int(rest[0])
	return previous, rest[1 : 1+n], rest[1+n:]
}

func TestPublishMakesAChain(t *testing.T) {
	var accepted []string
	o := Options{OnAccept: func(i int, body string, sent, at time.Time) {
		require.True(t, at.After(sent))
		accepted = append(accepted, body)
	}}
	within(t, o, func(t *testing.T, b *Bus, s *Subscription) {
		publish(t, b, "a", "b")
		require.NoError(t, s.Probe(t.Context(), "nonce"))
		got, _ := inbox(s, time.Second)
		require.Len(t, got, 3)
		none, first, a := split(got[0])
		second, last, _ := split(got[1])
		require.Empty(t, none)
		require.Equal(t, "a", a)
		require.Equal(t, first, second)
		none, position, echo := split(got[2])
		require.Empty(t, none)
		require.Equal(t, last, position)
		require.Equal(t, "\x01\x28"+b.history+"\x05nonce", echo)
		require.Equal(t, []string{"a", "b"}, accepted)
	})
}

func TestProbeMakesAPosition(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
		b.RefuseInfo(true)
		require.NoError(t, s.Probe(t.Context(), "nonce"))
		publish(t, b, "a")
		b.LosePosition()
		publish(t, b, "b")
		got, _ := inbox(s, time.Second)
		_, made, echo := split(got[0])
		require.Len(t, made, 40)
		require.Equal(t, "\x01\x00\x05nonce", echo)
		previous, _, _ := split(got[1])
		require.Equal(t, made, previous)
		previous, _, _ = split(got[2])
		require.Empty(t, previous)
	})
}

func TestFaultsOfMessages(t *testing.T) {
	tests := []struct {
		name  string
		fault func(*Instance)
		want  string
	}{
		{"none", func(*Instance) {}, "a b c"},
		{"lost", func(in *Instance) { in.Drop(2) }, "c"},
		{"lost invalidations", func(in *Instance) { in.DropInvalidations(2) }, "c"},
		{"twice", func(in *Instance) { in.Duplicate(1) }, "a a b c"},
		{"swapped", (*Instance).Swap, "b a c"},
		{"delayed", func(in *Instance) { in.Delay(time.Minute) }, "a b c"},
		{"slow", func(in *Instance) { in.Slow(time.Minute) }, "a b c"},
		{"dead", (*Instance).Deaden, ""},
		{"mute", func(in *Instance) { in.Mute(Down) }, ""},
		{"mute upwards", func(in *Instance) { in.Mute(Up) }, "a b c"},
		{"paused", (*Instance).Pause, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
				test.fault(b.Instance(0))
				publish(t, b, "a", "b", "c")
				got, err := inbox(s, time.Hour)
				require.NoError(t, err)
				require.Equal(t, test.want, bodies(got))
			})
		})
	}
}

func TestHealing(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
		in := b.Instance(0)
		in.Partition()
		publish(t, b, "a")
		go func() {
			time.Sleep(time.Minute)
			in.Heal(false)
			publish(t, b, "b")
			in.Mute(Down)
			publish(t, b, "lost")
			time.Sleep(time.Minute)
			in.Heal(true)
			publish(t, b, "to a dead connection")
		}()
		got, err := inbox(s, time.Hour)
		require.NoError(t, err)
		require.Equal(t, "a b", bodies(got))
	})
}

func TestConnectionsBreak(t *testing.T) {
	tests := []struct {
		name  string
		fault func(*testing.T, *Bus)
	}{
		{"cut", func(_ *testing.T, b *Bus) { b.Instance(0).Cut() }},
		{"failover", func(_ *testing.T, b *Bus) { b.Failover(false) }},
		{"stopped", func(_ *testing.T, b *Bus) { b.Stop() }},
		{"too slow", func(t *testing.T, b *Bus) {
			b.Instance(0).Delay(time.Minute)
			publish(t, b, "a", "b", "c")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			within(t, Options{OutputLimit: 2}, func(t *testing.T, b *Bus, s *Subscription) {
				test.fault(t, b)
				_, err := inbox(s, time.Hour)
				require.ErrorIs(t, err, ErrReset)
				b.Start()
				_, err = b.Instance(0).Subscribe(t.Context(), transport.Identity{Echo: "head,"})
				require.NoError(t, err)
			})
		})
	}
}

func TestFailover(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
		publish(t, b, "a")
		b.HoldReplica()
		publish(t, b, "b")
		history := b.history
		b.Failover(true)
		require.NotEqual(t, history, b.history)
		publish(t, b, "c")
		got, _ := inbox(s, time.Second)
		require.Equal(t, "a b c", bodies(got))
		afterB, _, _ := split(got[1])
		afterC, _, _ := split(got[2])
		require.Equal(t, afterB, afterC)
	})
}

func TestFaultsOfScripts(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
		in := b.Instance(1)
		ctx := t.Context()
		b.RefuseWrites(true)
		require.ErrorIs(t, in.Publish(ctx, saying("refused")), ErrRefused)
		b.RefuseWrites(false)
		in.Twice()
		require.NoError(t, in.Publish(ctx, saying("twice")))
		in.LoseReply()
		require.NoError(t, in.Publish(ctx, saying("again"))) // over a new connection
		in.Redial()
		in.Late(time.Minute)
		require.ErrorIs(t, in.Publish(ctx, saying("late")), ErrReset)
		require.NoError(t, in.Publish(ctx, saying("in time")))
		got, _ := inbox(s, time.Hour)
		require.Equal(t, "twice twice again again in time late", bodies(got))
	})
}

func TestTimeouts(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
		publish(t, b, "a")
		in := b.Instance(1)
		in.Mute(Up)
		began := time.Now()
		require.ErrorIs(t, in.Publish(t.Context(), saying("b")), context.DeadlineExceeded)
		require.Equal(t, 5*time.Second, time.Since(began))
		_, err := in.Subscribe(t.Context(), transport.Identity{})
		require.ErrorIs(t, err, context.DeadlineExceeded)

		// Close ends a probe that waits.
		b.Instance(0).Mute(Up)
		go func() {
			time.Sleep(time.Second)
			s.Close()
		}()
		began = time.Now()
		err = s.Probe(t.Context(), "nonce")
		require.True(t, errors.Is(err, ErrReset) || errors.Is(err, context.Canceled), "%v", err)
		require.Equal(t, time.Second, time.Since(began))
	})
}

func TestReaches(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, _ *Subscription) {
		in := b.Instance(0)
		for name, fault := range map[string]func(){
			"partition": in.Partition, "mute": func() { in.Mute(Down) }, "pause": in.Pause,
			"stop": b.Stop, "refuse": func() { b.RefuseWrites(true) },
		} {
			require.True(t, in.Reaches())
			fault()
			require.False(t, in.Reaches(), name)
			b.Heal()
		}
		in.DropInvalidations(1)
		require.True(t, in.Reaches())
	})
}

// An instance loses what others say, and hears itself and its echoes.
func TestDropInvalidations(t *testing.T) {
	within(t, Options{}, func(t *testing.T, b *Bus, s *Subscription) {
		in := b.Instance(0)
		in.DropInvalidations(1)
		require.NoError(t, s.Probe(t.Context(), "nonce"))
		require.NoError(t, in.Publish(t.Context(), saying("own")))
		publish(t, b, "lost", "next")
		got, err := inbox(s, time.Second)
		require.NoError(t, err)
		require.Equal(t, "echo own next", bodies(got))
	})
}

// A round trip is longer than all that happens on a network that is well.
func TestRoundTrip(t *testing.T) {
	for _, latency := range []time.Duration{0, 100 * time.Millisecond} {
		within(t, Options{MinLatency: latency / 2, MaxLatency: latency}, func(t *testing.T, b *Bus, s *Subscription) {
			for range 1000 {
				began := time.Now()
				require.NoError(t, s.Probe(t.Context(), "nonce"))
				_, _, err := s.Receive()
				require.NoError(t, err)
				require.Less(t, time.Since(began), b.RoundTrip())
			}
		})
	}
}
