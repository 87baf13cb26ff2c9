package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/nearcache/nearcache"
)

// Product is an item of the catalogue. The version tells its states apart.
type Product struct {
	ID       int64  `json:"id"`
	Name     string `json:"name"`
	Category string `json:"category"`
	Version  int64  `json:"version"`
}

// Price is what a product costs. It changes on its own, so it is an item of its
// own, with its own cache.
type Price struct {
	SKU     string `json:"sku"`
	Cents   int64  `json:"cents"`
	Version int64  `json:"version"`
}

// service is what one instance runs: two typed caches on one backplane, in front
// of a source that is slow.
type service struct {
	source    *sourceClient
	backplane *nearcache.Backplane
	products  *nearcache.Cache[int64, Product]
	prices    *nearcache.Cache[string, Price]
}

func newService(
	ctx context.Context, s childSettings, source *sourceClient, logger *slog.Logger,
) (_ *service, err error) {
	// One backplane for each process...
	backplane, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: s.redis,
		Channel:               s.channel,
		MaxStaleness:          maxStaleness, // of what is served, whatever becomes of Redis
		Logger:                logger,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, backplane.Close())
		}
	}()

	// ...and on it a cache for each kind of item. What one instance has loaded, the
	// others find in Redis, if they are to share: nothing else changes.
	var (
		productsInRedis *nearcache.SharedOptions[Product]
		pricesInRedis   *nearcache.SharedOptions[Price]
	)
	if s.shared {
		productsInRedis = &nearcache.SharedOptions[Product]{}
		pricesInRedis = &nearcache.SharedOptions[Price]{}
	}
	products, err := nearcache.New(backplane, nearcache.Options[int64, Product]{
		Name:    "products",
		Load:    source.product,
		Regions: func(_ int64, p Product) []string { return []string{p.Category} },
		Shared:  productsInRedis,
	})
	if err != nil {
		return nil, err
	}
	prices, err := nearcache.New(backplane, nearcache.Options[string, Price]{
		Name:   "prices",
		Load:   source.price,
		Shared: pricesInRedis,
	})
	if err != nil {
		return nil, err
	}
	return &service{source: source, backplane: backplane, products: products, prices: prices}, nil
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", s.readProducts)
	mux.HandleFunc("GET /prices", s.readPrices)
	mux.HandleFunc("PUT /prices/{sku}", s.setPrice)
	mux.HandleFunc("POST /products/{id}/changed", s.productChanged)
	mux.HandleFunc("POST /categories/{name}/changed", s.categoryChanged)
	mux.HandleFunc("GET /stats", s.stats)
	return mux
}

// readProducts answers from memory where it can. Of all readers that miss a
// product at the same time, one asks the source.
func (s *service) readProducts(w http.ResponseWriter, r *http.Request) {
	var products []Product
	for text := range strings.SplitSeq(r.FormValue("ids"), ",") {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		product, err := s.products.Get(r.Context(), id)
		if err != nil {
			replyError(w, err)
			return
		}
		products = append(products, product)
	}
	reply(w, http.StatusOK, products)
}

func (s *service) readPrices(w http.ResponseWriter, r *http.Request) {
	var prices []Price
	for sku := range strings.SplitSeq(r.FormValue("skus"), ",") {
		price, err := s.prices.Get(r.Context(), sku)
		if err != nil {
			replyError(w, err)
			return
		}
		prices = append(prices, price)
	}
	reply(w, http.StatusOK, prices)
}

// productChanged is called after a product was changed at the source. It evicts
// the product here and in all other instances.
func (s *service) productChanged(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	replyWritten(w, nil, s.products.Remove(r.Context(), id))
}

// categoryChanged does the same for all products of a category, however many
// there are.
func (s *service) categoryChanged(w http.ResponseWriter, r *http.Request) {
	replyWritten(w, nil, s.products.ClearRegion(r.Context(), r.PathValue("name")))
}

// setPrice changes a price through this instance, which keeps the new one.
func (s *service) setPrice(w http.ResponseWriter, r *http.Request) {
	cents, err := strconv.ParseInt(r.FormValue("cents"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sku := r.PathValue("sku")
	price, err := s.prices.Update(r.Context(), sku, func(ctx context.Context) (Price, error) {
		return s.source.setPrice(ctx, sku, cents)
	})
	replyWritten(w, price, err)
}

func (s *service) stats(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, s.backplane.Stats())
}

// close closes the caches too. Its error says what other instances did not hear.
func (s *service) close() error { return s.backplane.Close() }

// replyWritten answers a write. An invalidation that Redis has not confirmed is
// queued and will reach the others later: the write is not to be repeated.
func replyWritten(w http.ResponseWriter, value any, err error) {
	switch {
	case err == nil:
		reply(w, http.StatusOK, value)
	case errors.Is(err, nearcache.ErrUnconfirmed):
		reply(w, http.StatusAccepted, value)
	default:
		replyError(w, err)
	}
}

func replyError(w http.ResponseWriter, err error) {
	code := http.StatusBadGateway
	if errors.Is(err, nearcache.ErrNotFound) {
		code = http.StatusNotFound
	}
	http.Error(w, err.Error(), code)
}
