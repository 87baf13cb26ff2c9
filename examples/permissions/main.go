// Permissions is a cache of what the users of several tenants may do, in two
// instances that share a directory. Both are in this process, each with its own
// backplane, as they would be in two.
//
//	go run ./examples/permissions
//
// It revokes a right through one instance and sees that the other knows, changes a
// role of a tenant, and then stops Redis: a revocation cannot be told, and the other
// instance finds out by itself. It ends by itself, with 1 if something was not as it
// says. Without REDIS_CONNECTION_STRING it starts a Redis in memory; one that is
// yours it does not stop.
//
// Read service.go first: it is all there is to the cache. directory.go stands for the
// database.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/nearcache/nearcache"
)

var (
	alice  = Who{"acme", "alice"}
	bob    = Who{"acme", "bob"}
	eve    = Who{"globex", "eve"}
	nobody = Who{"acme", "mallory"}
)

func main() {
	if err := run(context.Background(), os.Getenv("REDIS_CONNECTION_STRING"), os.Stdout); err != nil {
		log.Fatal("permissions: ", err)
	}
}

func run(ctx context.Context, redis string, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var embedded *miniredis.Miniredis
	if redis == "" {
		if embedded, err = miniredis.Run(); err != nil {
			return err
		}
		defer embedded.Close()
		redis = embedded.Addr()
	}
	// A service has a fixed name here. This one is new each time, so that two runs on
	// one Redis do not meet.
	channel := "permissions-demo-" + rand.Text()[:8]

	directory := NewDirectory()
	a, err := start(ctx, redis, channel, directory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.backplane.Close()) }()
	b, err := start(ctx, redis, channel, directory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.backplane.Close()) }()

	if err := together(ctx, directory, a, b, out); err != nil {
		return err
	}
	if embedded == nil {
		fmt.Fprintln(out, "Redis is yours, so it is not stopped: run this without REDIS_CONNECTION_STRING to see that.")
	} else if err := apart(ctx, embedded, a, b, out); err != nil {
		return err
	}
	fmt.Fprintln(out, "OK")
	return nil
}

// An instance is what one process of the service has.
type instance struct {
	backplane *nearcache.Backplane
	guard     *Guard
}

func start(ctx context.Context, redis, channel string, directory *Directory) (*instance, error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: redis,
		Channel:               channel,
		Logger:                slog.New(slog.DiscardHandler), // for the sake of this program's output
	})
	if err != nil {
		return nil, err
	}
	guard, err := NewGuard(bp, directory)
	if err != nil {
		return nil, errors.Join(err, bp.Close())
	}
	return &instance{bp, guard}, nil
}

// together shows two instances that hear each other, and returns an error if they do
// not.
func together(ctx context.Context, directory *Directory, a, b *instance, out io.Writer) error {
	for _, who := range []Who{alice, bob, eve} {
		if err := has(ctx, b, who, Rights{Read: true, Write: true}); err != nil {
			return err
		}
	}
	for range 1000 {
		if err := has(ctx, b, nobody, Rights{}); err != nil {
			return err
		}
	}
	asked := directory.Asked(nobody)
	fmt.Fprintf(out, "b: alice, bob and eve may write; of 1000 requests by an unknown user, the directory saw %d\n", asked)
	if asked > 10 {
		return errors.New("a not-found was not kept")
	}

	if err := a.guard.Revoke(ctx, bob); err != nil {
		return err
	}
	took, err := comes(ctx, b, bob, Rights{})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "bob's rights are revoked on a: b denies him after %v\n", took)

	if err := a.guard.SetRole(ctx, "acme", "editor", Rights{Read: true}); err != nil {
		return err
	}
	if took, err = comes(ctx, b, alice, Rights{Read: true}); err != nil {
		return err
	}
	fmt.Fprintf(out, "editors of acme become readers on a: b lets alice only read after %v\n", took)
	switch _, held := b.guard.rights.Peek(eve); {
	case held:
		fmt.Fprintln(out, "eve is of another tenant, and b still has her in memory")
	case b.backplane.Stats().Lease.Lost == 0: // else Redis was silent for MaxStaleness
		return errors.New("the clear of a tenant's region reached another tenant")
	}
	return nil
}

// apart shows the same two when Redis is gone.
func apart(ctx context.Context, redis *miniredis.Miniredis, a, b *instance, out io.Writer) error {
	redis.Close()
	fmt.Fprintln(out, "Redis is stopped")
	err := a.guard.Revoke(ctx, alice)
	if !errors.Is(err, nearcache.ErrUnconfirmed) {
		return fmt.Errorf("a revocation without Redis returned %v, want ErrUnconfirmed", err)
	}
	fmt.Fprintf(out, "alice's rights are revoked on a, which says: %v\n", err)
	if err := has(ctx, a, alice, Rights{}); err != nil {
		return err
	}
	took, err := comes(ctx, b, alice, Rights{})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "a denies her at once; b, which cannot be told, asks the directory again and denies her after %v\n", took)

	if err := redis.Restart(); err != nil {
		return err
	}
	if err := errors.Join(a.backplane.Flush(ctx), b.backplane.Flush(ctx)); err != nil {
		return err
	}
	for a.backplane.State() != nearcache.StateLive || b.backplane.State() != nearcache.StateLive {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the instances are %v and %v: %w", a.backplane.State(), b.backplane.State(), ctx.Err())
		}
	}
	fmt.Fprintf(out, "Redis is back: the revocation was delivered, and both instances are %v\n", b.backplane.State())
	return nil
}

// has returns an error if a user's rights on an instance are not those.
func has(ctx context.Context, i *instance, who Who, want Rights) error {
	got, err := i.guard.Rights(ctx, who)
	if err == nil && got != want {
		err = fmt.Errorf("the rights of %v are %+v, want %+v", who, got, want)
	}
	return err
}

// comes waits until a user's rights on an instance are those. That may take MaxStaleness,
// and no longer.
func comes(ctx context.Context, i *instance, who Who, want Rights) (time.Duration, error) {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		asked := time.Since(began)
		err := has(ctx, i, who, want)
		switch {
		case err == nil:
			return asked.Round(10 * time.Microsecond), nil
		case asked > maxStaleness:
			return 0, fmt.Errorf("%v after a change: %w", asked, err)
		}
	}
}
