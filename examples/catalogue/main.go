// Catalogue is a service that shows products with their prices, in two instances
// that share a database. Both are in this process, each with its own backplane, as
// they would be in two.
//
//	go run ./examples/catalogue
//
// It reads pages, changes a product through one instance and sees the change on the
// other, does the same with a whole category, and takes the database down for a moment.
// It ends by itself, and exits with 1 if something was not as described. Without
// REDIS_CONNECTION_STRING it starts a Redis in memory.
//
// Read service.go first: it has all of the caches. store.go replaces the database.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/nearcache/nearcache"
)

// maxStaleness bounds how long a change takes to show on the other instance.
const maxStaleness = 2 * time.Second

func main() {
	if err := run(context.Background(), os.Getenv("REDIS_CONNECTION_STRING"), os.Stdout); err != nil {
		log.Fatal("catalogue: ", err)
	}
}

func run(ctx context.Context, redis string, out io.Writer) (err error) {
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
	// A service has a fixed name here. This one is new each time, so that two runs on one
	// Redis do not disturb each other.
	channel := "catalogue-demo-" + rand.Text()[:8]

	store := NewStore()
	a, err := start(ctx, redis, channel, store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	b, err := start(ctx, redis, channel, store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	return tour(ctx, store, a, b, out)
}

// tour visits both instances, and returns an error if they are not as they should be.
func tour(ctx context.Context, store *Store, a, b *instance, out io.Writer) error {
	store.Count()
	page, err := a.page(ctx, "books")
	if err != nil {
		return err
	}
	queries, _ := store.Count()
	fmt.Fprintf(out, "%q on a: %d products and their prices, %d queries\n", page.Title, len(page.Items), queries)
	if queries != 3 {
		return fmt.Errorf("a list page took %d queries, want 3", queries)
	}

	var visitors sync.WaitGroup
	for id := 1; id <= 3*perCategory; id++ {
		visitors.Go(func() { _ = b.call(ctx, http.MethodGet, fmt.Sprint("/products/", id), nil) })
	}
	visitors.Wait()
	queries, atOnce := store.Count()
	fmt.Fprintf(out, "b starts cold, and is asked for %d products at once: %d queries, at most %d at a time\n",
		3*perCategory, queries, atOnce)
	if queries < 3*perCategory || atOnce > 4 {
		return errors.New("that is not one for each, or more at a time than MaxConcurrentLoads, which is 4")
	}

	took, err := shownBy(ctx, b, "/products/1?name=The+Go+Memory+Model", a,
		func(page Page) bool { return page.Items[0].Name == "The Go Memory Model" })
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "a product is renamed on b: a shows it after %v\n", took)

	took, err = shownBy(ctx, a, "/categories/books/discount?percent=20", b,
		func(page Page) bool { return page.Items[0].Discount == 20 && page.Items[perCategory-1].Discount == 20 })
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "20 %% off all books on a: b shows it after %v\n", took)

	// A price that is often asked for is refreshed in the background: no reader waits.
	slowest := time.Duration(0)
	if _, err := a.page(ctx, "books"); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < 3*priceRefreshAfter || a.service.prices.Stats().Refreshes == 0; {
		asked := time.Now()
		if _, err := a.page(ctx, "books"); err != nil {
			return err
		}
		slowest = max(slowest, time.Since(asked))
	}
	fmt.Fprintf(out, "a hot page, whose prices are loaded again every %v: the slowest of its reads took %v\n",
		priceRefreshAfter, slowest.Round(10*time.Microsecond))

	store.Down(true)
	fmt.Fprintf(out, "the database is down: a query hangs for %v, then fails; prices live for %v\n", outageTakes, priceTTL)
	for range 5 {
		time.Sleep(priceTTL / 2)
		asked := time.Now()
		if page, err = a.page(ctx, "books"); err != nil {
			return err
		}
		took = time.Since(asked)
		fmt.Fprintf(out, "  a: a page of %d products after %v\n", len(page.Items), took.Round(10*time.Microsecond))
		if len(page.Items) != perCategory || took >= outageTakes {
			return errors.New("that is not a page of all products, or it waited for the database")
		}
	}
	store.Down(false)
	if a.service.prices.Stats().Stale == 0 {
		return errors.New("no expired price was served, so the outage was not noticed")
	}

	took, err = shownBy(ctx, a, "/prices/SKU-2?cents=500", b,
		func(page Page) bool { return page.Items[1].Cents == 400 }) // 20 % off
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "it is back, and a price is changed on a: b shows it after %v\n", took)

	fmt.Fprintf(out, "\n%-13s %7s %6s %6s %9s %6s %6s %13s\n",
		"", "hits", "misses", "loads", "refreshes", "failed", "stale", "invalidations")
	for n, i := range []*instance{a, b} {
		for _, s := range i.backplane.Stats().Caches {
			fmt.Fprintf(out, "%c: %-10s %7d %6d %6d %9d %6d %6d %13d\n", 'a'+n, s.Name, s.Hits, s.Misses.Total(), s.Loads,
				s.Refreshes, s.LoadErrors, s.Stale, s.Invalidations.Keys+s.Invalidations.Regions+s.Invalidations.Clears)
		}
	}
	fmt.Fprintln(out, "OK")
	return nil
}

// shownBy has one instance change something, and waits until the other, which holds
// an old copy, shows it.
func shownBy(ctx context.Context, changes *instance, path string, shows *instance, changed func(Page) bool) (time.Duration, error) {
	if _, err := shows.page(ctx, "books"); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := changes.call(ctx, http.MethodPut, path, nil); err != nil {
		return 0, err
	}
	for {
		page, err := shows.page(ctx, "books")
		switch took := time.Since(began); {
		case err != nil:
			return 0, err
		case changed(page):
			return took.Round(10 * time.Microsecond), nil
		case took > maxStaleness:
			return 0, fmt.Errorf("%s does not show on the other instance after %v", path, took)
		}
	}
}

// An instance is what one process of the service has.
type instance struct {
	backplane *nearcache.Backplane
	service   *Service
	listener  net.Listener
}

func start(ctx context.Context, redis, channel string, store *Store) (*instance, error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: redis,
		Channel:               channel,
		MaxStaleness:          maxStaleness,
		Logger:                slog.New(slog.DiscardHandler), // for the sake of this program's output
	})
	if err != nil {
		return nil, err
	}
	service, err := NewService(bp, store)
	if err != nil {
		return nil, errors.Join(err, bp.Close())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, bp.Close())
	}
	go func() { _ = http.Serve(listener, service.Handler()) }() // until the listener is closed
	return &instance{bp, service, listener}, nil
}

// close stops the requests before it closes what they use. Its error says what the other
// instance has not been told.
func (i *instance) close() error { return errors.Join(i.listener.Close(), i.backplane.Close()) }

func (i *instance) page(ctx context.Context, category string) (page Page, err error) {
	err = i.call(ctx, http.MethodGet, "/categories/"+url.PathEscape(category), &page)
	return page, err
}

// call makes a request, and decodes the answer into result unless that is nil.
func (i *instance) call(ctx context.Context, method, path string, result any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+i.listener.Addr().String()+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, body)
	case result == nil:
		return nil
	}
	return json.Unmarshal(body, result)
}
