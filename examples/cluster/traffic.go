package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
)

const (
	readers   = 18  // of all instances together: what bounds the load on this machine
	batchSize = 100 // reads asked for in one request

	// Of the changes, one in so many changes a whole category; the others change
	// a product and a price by turns.
	changesPerClear = 100

	// A change that an instance does not serve by then is not waited for. It is
	// more than the tolerance, so that the last read of one is a violation.
	effectLimit = tolerance + time.Second
)

// traffic is the instances' users: it reads all the time, changes something now and then,
// and records what it is served.
type traffic struct {
	catalogue *catalogue
	instances []*instanceClient
	sightings []*sightings // of the instance at the same index
	products  int
	reads     int   // per second
	changes   int   // per second
	enough    int64 // reads by its users, then it ends; 0: by ctx alone

	served      atomic.Int64 // reads by its users
	changed     atomic.Int64 // products and prices
	cleared     atomic.Int64 // categories
	unconfirmed atomic.Int64 // of both, those that Redis did not confirm
}

func newTraffic(c *catalogue, instances []*instanceClient, s settings) *traffic {
	t := &traffic{
		catalogue: c,
		instances: instances,
		products:  s.products,
		reads:     s.reads,
		changes:   s.changes,
	}
	for _, instance := range instances {
		t.sightings = append(t.sightings, &sightings{instance: instance.number})
	}
	return t
}

// errEnough ends traffic that has read enough.
var errEnough = errors.New("enough was read")

// start starts the traffic. It runs until ctx ends, and calls fail with the first error, or
// with errEnough. Requests under way when ctx ends are finished. The function that start
// returns waits for that.
func (t *traffic) start(ctx context.Context, fail func(error)) (wait func()) {
	var running sync.WaitGroup
	run := func(every time.Duration, step func(context.Context, *shopper) error) {
		running.Go(func() {
			user := newShopper(t.products)
			if !pause(ctx, rand.N(every)) { // not all at the same moment
				return
			}
			for tick := time.Tick(every); ctx.Err() == nil; {
				if err := step(ctx, user); err != nil {
					fail(err)
					return
				}
				select {
				case <-tick:
				case <-ctx.Done():
				}
			}
		})
	}

	perInstance := max(1, readers/len(t.instances))
	all := perInstance * len(t.instances)
	readEvery := time.Second * time.Duration(all*batchSize) / time.Duration(t.reads)
	for i := range all {
		run(readEvery, func(ctx context.Context, user *shopper) error {
			return t.readBatch(ctx, i%len(t.instances), user)
		})
	}
	// Two, so that changes meet.
	changeEvery := 2 * time.Second / time.Duration(t.changes)
	for range 2 {
		run(changeEvery, t.change)
	}
	return running.Wait
}

// shopper chooses what to ask for: a few items often, most of them hardly ever.
type shopper struct {
	popular *rand.Zipf
	turn    int
}

func newShopper(products int) *shopper {
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	return &shopper{popular: rand.NewZipf(random, 1.3, 1, uint64(products-1))}
}

func (s *shopper) product() int64 { return int64(s.popular.Uint64()) + 1 }

// read is one item as an instance served it.
type read struct {
	item    item
	version int64
}

// readBatch reads a batch from an instance: prices every fourth time.
func (t *traffic) readBatch(ctx context.Context, instance int, user *shopper) error {
	if n := t.served.Add(batchSize); t.enough > 0 && n > t.enough {
		t.served.Add(-batchSize)
		return errEnough
	}
	user.turn++
	if user.turn%4 == 0 {
		var skus []string
		for range batchSize {
			skus = append(skus, skuOf(user.product()))
		}
		_, err := t.readPrices(ctx, instance, skus...)
		return err
	}
	var ids []int64
	for range batchSize {
		ids = append(ids, user.product())
	}
	_, err := t.readProducts(ctx, instance, ids...)
	return err
}

// readProducts reads products from an instance and judges what it served.
//
// All reads of a batch count from when the batch was requested, although its last item is
// read later. So the judgement is too lenient by the time of a batch. We accept this
// because that is milliseconds, and the limit is seconds.
func (t *traffic) readProducts(ctx context.Context, instance int, ids ...int64) ([]read, error) {
	began := t.catalogue.now()
	products, err := t.instances[instance].products(context.WithoutCancel(ctx), ids)
	if err != nil {
		return nil, err
	}
	reads := make([]read, len(products))
	for i, p := range products {
		reads[i] = read{item: productItem(p.ID), version: p.Version}
	}
	t.sightings[instance].note(reads, t.catalogue.judge(began, reads))
	return reads, nil
}

func (t *traffic) readPrices(ctx context.Context, instance int, skus ...string) ([]read, error) {
	began := t.catalogue.now()
	prices, err := t.instances[instance].prices(context.WithoutCancel(ctx), skus)
	if err != nil {
		return nil, err
	}
	reads := make([]read, len(prices))
	for i, p := range prices {
		reads[i] = read{item: priceItem(p.SKU), version: p.Version}
	}
	t.sightings[instance].note(reads, t.catalogue.judge(began, reads))
	return reads, nil
}

// change changes something, tells one instance, and waits until all serve it.
func (t *traffic) change(ctx context.Context, user *shopper) error {
	user.turn++
	told := rand.IntN(len(t.instances))
	id := user.product()
	switch {
	case user.turn%(changesPerClear/2) == 0: // each of the two changers does half of them
		return t.changeCategory(ctx, told, id)
	case user.turn%2 == 0:
		return t.changePrice(ctx, told, skuOf(id))
	default:
		return t.changeProduct(ctx, told, id)
	}
}

// changeProduct changes a product at the source and tells an instance afterwards.
func (t *traffic) changeProduct(ctx context.Context, told int, id int64) error {
	look := func(instance int) ([]read, error) { return t.readProducts(ctx, instance, id) }
	if err := t.warm(look); err != nil {
		return err
	}
	made := t.catalogue.changeProduct(id)
	confirmed, err := t.instances[told].productChanged(context.WithoutCancel(ctx), id)
	if err != nil {
		return err
	}
	t.count(&t.changed, confirmed)
	return t.awaitEffect(ctx, told, made, look)
}

// changePrice changes a price through an instance.
func (t *traffic) changePrice(ctx context.Context, told int, sku string) error {
	look := func(instance int) ([]read, error) { return t.readPrices(ctx, instance, sku) }
	if err := t.warm(look); err != nil {
		return err
	}
	price, confirmed, err := t.instances[told].setPrice(context.WithoutCancel(ctx), sku, 100+rand.Int64N(10_000))
	if err != nil {
		return err
	}
	made := t.catalogue.priceChange(price)
	t.count(&t.changed, confirmed)
	return t.awaitEffect(ctx, told, made, look)
}

// changeCategory changes every product in the category of one, which stands for
// the others when the effect is measured.
func (t *traffic) changeCategory(ctx context.Context, told int, id int64) error {
	look := func(instance int) ([]read, error) { return t.readProducts(ctx, instance, id) }
	if err := t.warm(look); err != nil {
		return err
	}
	made := t.catalogue.changeCategoryOf(id)
	confirmed, err := t.instances[told].categoryChanged(context.WithoutCancel(ctx), categoryOf(id))
	if err != nil {
		return err
	}
	t.count(&t.cleared, confirmed)
	return t.awaitEffect(ctx, told, made, look)
}

// warm makes every instance load the item that is about to change. An instance without the
// item has nothing to evict, and would make the measurement look better.
func (t *traffic) warm(look func(instance int) ([]read, error)) error {
	for instance := range t.instances {
		if _, err := look(instance); err != nil {
			return err
		}
	}
	return nil
}

func (t *traffic) count(changes *atomic.Int64, confirmed bool) {
	changes.Add(1)
	if !confirmed {
		t.unconfirmed.Add(1)
	}
}

// awaitEffect reads a changed item from every instance except the one that was told, until
// each serves the change. It notes how long that took since the change at the source. That
// is the time of the invalidation through Redis, and of a load.
func (t *traffic) awaitEffect(
	ctx context.Context, told int, made change, look func(instance int) ([]read, error),
) error {
	failed := make(chan error, len(t.instances))
	var looking sync.WaitGroup
	for instance := range t.instances {
		if instance == told {
			continue
		}
		looking.Go(func() {
			for {
				waited := t.catalogue.now() - made.at // until the read begins, which is what look judges by
				reads, err := look(instance)
				took := t.catalogue.now() - made.at
				if err != nil {
					failed <- err
					return
				}
				if reads[0].version >= made.version {
					t.sightings[instance].noteEffect(took)
					return
				}
				if waited > effectLimit {
					t.sightings[instance].noteNoEffect(took)
					return
				}
				if !pause(ctx, time.Millisecond) {
					return
				}
			}
		})
	}
	looking.Wait()
	close(failed)
	return <-failed // nil if none
}

// stats asks every instance for its statistics.
func (t *traffic) stats(ctx context.Context) ([]nearcache.BackplaneStats, error) {
	var all []nearcache.BackplaneStats
	for _, instance := range t.instances {
		s, err := instance.stats(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
