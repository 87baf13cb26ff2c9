// Shop is a small web service that keeps products in Redis too: what one instance has
// loaded from the database the others do not load again.
//
//	redis-server --port 6390 --save ""
//	REDIS_CONNECTION_STRING=localhost:6390 go run ./examples/shop
//
// It starts two instances on one database, in one process, each with a port and a
// backplane of its own, as in two processes. It sends them requests, and says for each where
// the answer came from: memory, Redis or the source. Then it asks both for the same items at
// once, and replaces an instance by a new one, which has nothing in memory. It ends by
// itself, and exits with 1 if something was not as described. It leaves keys named after its
// channel in your Redis: the products for an hour, and two small ones.
//
// Without REDIS_CONNECTION_STRING there is one instance with process-local caches. The
// service is the same: nothing in service.go depends on it.
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
	"os"
	"sync"
	"time"

	"github.com/nearcache/nearcache"
)

func main() {
	if err := run(context.Background(), os.Getenv("REDIS_CONNECTION_STRING"), os.Stdout); err != nil {
		log.Fatal("shop: ", err)
	}
}

func run(ctx context.Context, redis string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	t := &tour{redis: redis, channel: newChannel(), store: NewStore(), out: out}
	if redis == "" {
		t.alone(ctx)
	} else {
		t.together(ctx)
	}
	return errors.Join(t.err, t.close())
}

// newChannel returns a channel's name. A service has a fixed one. This one is new each
// time, so that two runs on one Redis do not meet: the database is new each time, too,
// and what was in the last one is still in Redis.
func newChannel() string { return "shop-demo-" + rand.Text()[:8] }

// tour is the state of a run.
type tour struct {
	redis, channel string
	store          *Store
	out            io.Writer
	instances      []*instance // all that were started
	err            error       // the first; after it nothing is done
}

func (t *tour) close() (err error) {
	for _, i := range t.instances {
		err = errors.Join(err, i.close())
	}
	return err
}

// alone shows one instance without Redis.
func (t *tour) alone(ctx context.Context) {
	a := t.start(ctx, "a", t.channel)
	if t.err != nil {
		return
	}
	t.say("REDIS_CONNECTION_STRING is not set: one instance, and its caches are process-local.\n\n")
	t.headings()
	t.get(ctx, a, "it is cold", expected{product: atSource, price: atSource}, "Product 3", 3000)
	t.get(ctx, a, "again", expected{product: inMemory, price: inMemory}, "Product 3", 3000)
	t.put(ctx, a, "bob", "/products/3?name=Mine&cents=1", expected{rights: atSource}, http.StatusForbidden)
	t.put(ctx, a, "alice", "/products/3?name=Go&cents=4000", expected{rights: atSource}, http.StatusOK)
	t.get(ctx, a, "it was changed", expected{product: atSource, price: atSource}, "Go", 4000)
	t.put(ctx, a, "alice", "/categories/books?discount=20", expected{rights: inMemory}, http.StatusOK)
	t.get(ctx, a, "20 % off", expected{product: atSource, price: inMemory}, "Go", 3200)
	t.say("\nWith a Redis there are two instances, which find each other's products there:\n\n" +
		"  redis-server --port 6390 --save \"\"\n" +
		"  REDIS_CONNECTION_STRING=localhost:6390 go run ./examples/shop\n\nOK\n")
}

// together shows two instances with Redis, and a third.
func (t *tour) together(ctx context.Context) {
	a, b := t.start(ctx, "a", t.channel), t.start(ctx, "b", t.channel)
	if t.err != nil {
		return
	}
	t.say("Two instances, a and b, on your Redis. Products are shared there, prices and rights are not.\n\n")
	t.headings()
	t.visit(ctx, a, b)
	t.crowd(ctx, a, b)
	t.replace(ctx, a, b)
	t.say("OK\n")
}

// visit reads a product from both, and changes it.
func (t *tour) visit(ctx context.Context, a, b *instance) {
	t.get(ctx, a, "both are cold", expected{product: atSource, price: atSource}, "Product 3", 3000)
	t.get(ctx, a, "again", expected{product: inMemory, price: inMemory}, "Product 3", 3000)
	t.get(ctx, b, "a has loaded it", expected{product: inRedis, price: atSource}, "Product 3", 3000)
	t.get(ctx, b, "again", expected{product: inMemory, price: inMemory}, "Product 3", 3000)

	t.put(ctx, b, "bob", "/products/3?name=Mine&cents=1", expected{rights: atSource}, http.StatusForbidden)
	t.put(ctx, b, "alice", "/products/3?name=Go&cents=4000", expected{rights: atSource}, http.StatusOK)
	t.get(ctx, b, "it was changed here", expected{product: atSource, price: atSource}, "Go", 4000)
	t.get(ctx, a, "it was changed on b", expected{product: inRedis, price: atSource}, "Go", 4000)

	t.put(ctx, a, "alice", "/categories/books?discount=20", expected{rights: atSource}, http.StatusOK)
	t.get(ctx, a, "20 % off", expected{product: atSource, price: inMemory}, "Go", 3200)
	t.get(ctx, b, "20 % off", expected{product: inRedis, price: inMemory}, "Go", 3200)
}

// crowd asks both instances for what neither has.
func (t *tour) crowd(ctx context.Context, a, b *instance) {
	if t.err != nil {
		return
	}
	const product, visitors = 7, 20
	var asking sync.WaitGroup
	errs := make([]error, 2*visitors)
	for n := range errs {
		asking.Go(func() {
			_, errs[n] = []*instance{a, b}[n%2].call(ctx, http.MethodGet, fmt.Sprint("/products/", product), "", nil)
		})
	}
	asking.Wait()
	t.fail(errors.Join(errs...))
	reads := t.store.Reads(product)
	t.say("\n%d visitors ask a, and %d ask b, for product %d at the same time: reads from the source: %d\n",
		visitors, visitors, product, reads)
	t.insist(reads == 1, "both instances have loaded it")
}

// replace makes b read everything, and replaces a by a new instance.
func (t *tour) replace(ctx context.Context, a, b *instance) {
	t.all(ctx, b)
	if t.err != nil {
		return
	}
	t.fail(a.close())
	c := t.start(ctx, "c", t.channel)
	from := t.all(ctx, c)
	t.say("b has read all %d products. c takes the place of a, with nothing in memory, and reads them all:\n"+
		"%d come from Redis, %d from the source\n", productCount, from[inRedis], from[atSource])
	if from[inRedis] == 0 && t.err == nil {
		t.fail(errors.New("no product was found in Redis: it does not tell its history (INFO replication), " +
			"or the user lacks rights, which docs/redis.md lists"))
	}
	t.insist(from[inRedis] == productCount, "not all products were found in Redis")

	t.say("\n%-12s %7s %6s %7s %13s\n", "GET /stats", "memory", "Redis", "source", "put in Redis")
	for _, i := range []*instance{b, c} {
		for _, s := range t.stats(ctx, i).Caches {
			t.say("%s: %-9s %7d %6d %7d %13d\n", i.name, s.Name, s.Hits, s.Shared.Hits, s.Loads, s.Shared.Stored)
		}
	}
}

// all reads all products from an instance, and counts where they came from.
func (t *tour) all(ctx context.Context, i *instance) map[level]int {
	from := map[level]int{}
	for id := 1; id <= productCount; id++ {
		from[t.request(ctx, i, http.MethodGet, fmt.Sprint("/products/", id), "", http.StatusOK, nil).product]++
	}
	return from
}

// level is where an answer came from.
type level int

const (
	none level = iota
	inMemory
	inRedis
	atSource
)

func (l level) String() string { return []string{"-", "memory", "Redis", "source"}[l] }

// expected is the level that each cache has to answer from.
type expected struct{ product, price, rights level }

// get reads product 3 from an instance. If that shows something else than is expected,
// it asks again until the bound on staleness has passed: the instance may not have
// heard yet.
func (t *tour) get(ctx context.Context, i *instance, why string, want expected, name string, cents int64) {
	var from expected
	for began := time.Now(); t.err == nil; time.Sleep(time.Millisecond) {
		asked := time.Since(began)
		var item Item
		answered := t.request(ctx, i, http.MethodGet, "/products/3", "", http.StatusOK, &item)
		from.product, from.price = max(from.product, answered.product), max(from.price, answered.price)
		if item.Name == name && item.Cents == cents {
			break
		}
		if asked > maxStaleness {
			t.fail(fmt.Errorf("%s shows %q for %d cents, want %q for %d", i.name, item.Name, item.Cents, name, cents))
		}
	}
	t.show(i, "GET /products/3 ("+why+")", from, want)
}

// put has a user change something through an instance.
func (t *tour) put(ctx context.Context, i *instance, user, path string, want expected, code int) {
	from := t.request(ctx, i, http.MethodPut, path, user, code, nil)
	t.show(i, fmt.Sprintf("PUT %s by %s: %d", path, user, code), from, want)
}

func (t *tour) headings() { t.say("%-60s %-8s %-8s %s\n", "", "product", "price", "rights") }

func (t *tour) show(i *instance, what string, from, want expected) {
	t.say("%s: %-57s %-8v %-8v %v\n", i.name, what, from.product, from.price, from.rights)
	t.insist(from == want, fmt.Sprintf("that should have been: product %v, price %v, rights %v", want.product, want.price, want.rights))
}

// insist fails if something is not as it should be, unless Redis was too slow: then it
// is only said. An instance does without it then, which costs loads.
func (t *tour) insist(ok bool, complaint string) {
	if ok || t.err != nil {
		return
	}
	for _, i := range t.instances {
		s := i.backplane.Stats()
		for _, c := range s.Caches {
			if s.Lease.Lost > 0 || c.Shared.Errors > 0 {
				t.say("   (%s; but Redis was slow, or refused, so %s did without it)\n", complaint, i.name)
				return
			}
			if c.Shared.Skipped.Total() > 0 {
				complaint += fmt.Sprintf("; %s did not ask Redis, which may be for want of its history (INFO replication)", i.name)
			}
		}
	}
	t.fail(errors.New(complaint))
}

// say prints, unless something has failed.
func (t *tour) say(format string, args ...any) {
	if t.err == nil {
		_, _ = fmt.Fprintf(t.out, format, args...)
	}
}

func (t *tour) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// request makes a request, and returns the level from which each cache answered it. It
// compares the statistics before and after, so there must be no other requests.
func (t *tour) request(ctx context.Context, i *instance, method, path, user string, wantCode int, result any) (from expected) {
	before := t.stats(ctx, i)
	if t.err != nil {
		return from
	}
	code, err := i.call(ctx, method, path, user, result)
	if code != wantCode {
		t.fail(errors.Join(err, fmt.Errorf("%s %s by %q: status %d, want %d", method, path, user, code, wantCode)))
	}
	after := t.stats(ctx, i)
	for n, c := range after.Caches {
		answered := levelOf(before.Caches[n], c)
		switch c.Name {
		case "products":
			from.product = answered
		case "prices":
			from.price = answered
		case "rights":
			from.rights = answered
		}
	}
	return from
}

func levelOf(before, after nearcache.CacheStats) level {
	switch {
	case after.Loads > before.Loads:
		return atSource
	case after.Shared.Hits > before.Shared.Hits:
		return inRedis
	case after.Hits > before.Hits:
		return inMemory
	}
	return none
}

func (t *tour) stats(ctx context.Context, i *instance) (stats nearcache.BackplaneStats) {
	if t.err == nil {
		_, err := i.call(ctx, http.MethodGet, "/stats", "", &stats)
		t.fail(err)
	}
	return stats
}

// maxStaleness bounds how long a change takes to show on the other instances.
const maxStaleness = 5 * time.Second

// An instance is what one process of the service has.
type instance struct {
	name      string
	url       string
	backplane *nearcache.Backplane
	server    *http.Server
}

// start starts an instance. It is nil if that fails.
func (t *tour) start(ctx context.Context, name, channel string) *instance {
	if t.err != nil {
		return nil
	}
	i, err := startInstance(ctx, name, t.redis, channel, t.store)
	if err != nil {
		t.fail(err)
		return nil
	}
	t.instances = append(t.instances, i)
	return i
}

func startInstance(ctx context.Context, name, redis, channel string, store *Store) (*instance, error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: redis, // empty: process-local
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
	server := &http.Server{Handler: service.Handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // until close
	return &instance{name, "http://" + listener.Addr().String(), bp, server}, nil
}

// close finishes the requests before it closes what they use. It may be called twice.
func (i *instance) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(i.server.Shutdown(ctx), i.backplane.Close())
}

// call makes a request, and decodes the answer into result unless that is nil.
func (i *instance) call(ctx context.Context, method, path, user string, result any) (code int, err error) {
	request, err := http.NewRequestWithContext(ctx, method, i.url+path, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("X-User", user)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return response.StatusCode, err
	case response.StatusCode != http.StatusOK:
		return response.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, body)
	case result == nil:
		return response.StatusCode, nil
	}
	return response.StatusCode, json.Unmarshal(body, result)
}
