package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nearcache/nearcache"
)

const (
	lastIndexed = 300 // the job leaves the others alone
	batch       = 50
)

// recipe: reindex connect

// job connects, works, and disconnects.
func job(ctx context.Context, redis, channel string, store *Store, out io.Writer) (err error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: redis,
		Channel:               channel, // the service's
		PublishOnly:           true,
		Logger:                slog.New(slog.DiscardHandler), // OnEvent prints the events
		OnEvent:               func(e nearcache.Event) { fmt.Fprintln(out, "job:", e.Kind, e.State) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bp.Close()) }()
	return Reindex(ctx, bp, store)
}

// recipe end

// recipe: reindex job

// Reindex indexes the documents up to lastIndexed again, and all French ones. It tells
// the instances of the service which documents to load again.
func Reindex(ctx context.Context, bp *nearcache.Backplane, store *Store) error {
	documents, err := nearcache.NewInvalidator[int64](bp, "documents") // the name of the service's cache
	if err != nil {
		return err
	}
	for first := int64(1); first <= lastIndexed; first += batch {
		ids := store.Reindex(first, min(first+batch-1, lastIndexed)) // the source first
		if err := documents.Remove(ctx, ids...); err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
			return err
		} // unconfirmed: Redis is away, and the message is sent when it is back
	}
	store.ReindexLanguage("fr")
	if err := documents.ClearRegion(ctx, "fr"); err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
		return err
	}

	// If the job ended before Redis has accepted all messages, the service would serve old
	// versions until their TTL. So the job waits for Redis, and fails if that takes too long.
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return bp.Flush(limited)
}

// recipe end
