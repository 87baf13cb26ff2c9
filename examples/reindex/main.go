// Reindex is a job that changes what a service has cached. It caches nothing itself,
// so it only publishes: one connection to Redis, no subscription.
//
//	go run ./examples/reindex
//
// Beside it, in the same process, is one instance of the service, with a backplane of
// its own. The instance has all documents in memory, and the job indexes some of them
// again. Then the instance shows that its copies of these are gone and the others are not.
// The program ends by itself, and exits with 1 if something was not as described. Without
// REDIS_CONNECTION_STRING it starts a Redis in memory.
//
// Read job.go first. store.go replaces the database.
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

const documentCount = 1000

func main() {
	if err := run(context.Background(), os.Getenv("REDIS_CONNECTION_STRING"), os.Stdout); err != nil {
		log.Fatal("reindex: ", err)
	}
}

func run(ctx context.Context, redis string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if redis == "" {
		embedded, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer embedded.Close()
		redis = embedded.Addr()
	}
	// Job and service agree on a fixed name here. This one is new each time, so that two
	// runs on one Redis do not meet.
	channel := "reindex-demo-" + rand.Text()[:8]

	store := NewStore(documentCount)
	return watch(ctx, redis, channel, store, out, func() error {
		return job(ctx, redis, channel, store, out)
	})
}

// watch runs an instance of the service while the job does its work, and returns an
// error if the instance serves what the job has changed.
func watch(ctx context.Context, redis, channel string, store *Store, out io.Writer, job func() error) (err error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: redis,
		Channel:               channel,
		Logger:                slog.New(slog.DiscardHandler), // for the sake of this program's output
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bp.Close()) }()
	documents, err := nearcache.New(bp, nearcache.Options[int64, Document]{
		Name:     "documents",
		LoadMany: store.Documents,
		Regions:  func(_ int64, d Document) []string { return []string{d.Language} },
	})
	if err != nil {
		return err
	}

	var ids []int64
	for id := int64(1); id <= documentCount; id++ {
		ids = append(ids, id)
	}
	if _, err := documents.GetMany(ctx, ids...); err != nil {
		return err
	}
	fmt.Fprintf(out, "service: holds %d documents\n", documents.Len())

	if err := job(); err != nil {
		return err
	}

	// Redis has accepted the job's messages. They take effect here within MaxStaleness,
	// which is 5 seconds unless set, and normally at once.
	finished := time.Now()
	for held, old := count(documents, store, ids); ; held, old = count(documents, store, ids) {
		took := time.Since(finished)
		if old == 0 {
			fmt.Fprintf(out, "service: %v after the job it holds %d documents, none of them old\n",
				took.Round(10*time.Microsecond), held)
			break
		}
		if took > 5*time.Second {
			return fmt.Errorf("the service holds %d old documents, %v after the job", old, took)
		}
		time.Sleep(time.Millisecond)
	}
	served, err := documents.GetMany(ctx, ids...)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if served[id].Version != store.Version(id) {
			return fmt.Errorf("document %d is served in version %d, and %d is the newest", id, served[id].Version, store.Version(id))
		}
	}
	s := documents.Stats()
	fmt.Fprintf(out, "service: serves all of them in their newest version; %d keys and %d regions were invalidated, %d documents loaded again\n",
		s.Invalidations.Keys, s.Invalidations.Regions, s.Loads-documentCount)
	if s.Loads >= 2*documentCount {
		return errors.New("documents that had not changed were loaded again")
	}
	fmt.Fprintln(out, "OK")
	return nil
}

// count looks at what is in memory, and loads nothing.
func count(documents *nearcache.Cache[int64, Document], store *Store, ids []int64) (held, old int) {
	for _, id := range ids {
		d, ok := documents.Peek(id)
		if ok {
			held++
		}
		if ok && d.Version < store.Version(id) {
			old++
		}
	}
	return held, old
}
