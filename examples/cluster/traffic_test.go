package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/nearcache/nearcache"
)

// deaf is an instance that hears of no change, as one that is cut off from Redis.
// It goes on serving what it had, and leaves the changes it is told of unconfirmed.
func deaf(source *sourceClient) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", func(w http.ResponseWriter, r *http.Request) {
		var products []Product
		for text := range strings.SplitSeq(r.FormValue("ids"), ",") {
			id, _ := strconv.ParseInt(text, 10, 64)
			products = append(products, Product{ID: id, Version: 1})
		}
		reply(w, http.StatusOK, products)
	})
	mux.HandleFunc("GET /prices", func(w http.ResponseWriter, r *http.Request) {
		var prices []Price
		for sku := range strings.SplitSeq(r.FormValue("skus"), ",") {
			prices = append(prices, Price{SKU: sku, Version: 1})
		}
		reply(w, http.StatusOK, prices)
	})
	mux.HandleFunc("PUT /prices/{sku}", func(w http.ResponseWriter, r *http.Request) {
		price, err := source.setPrice(r.Context(), r.PathValue("sku"), 1)
		replyWritten(w, price, cmp.Or(err, nearcache.ErrUnconfirmed))
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) {
		replyWritten(w, nil, nearcache.ErrUnconfirmed)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, nearcache.BackplaneStats{})
	})
	return mux
}

func TestTrafficFindsViolation(t *testing.T) {
	catalogue := newCatalogue(100, 0)
	catalogue.ledger.tolerance = 20 * time.Millisecond
	source, err := serve(catalogue.handler())
	if err != nil {
		t.Fatal(err)
	}
	defer source.close()
	instance, err := serve(deaf(newSourceClient(source.url)))
	if err != nil {
		t.Fatal(err)
	}
	defer instance.close()

	clients := []*instanceClient{
		{number: 1, web: newWebClient(instance.url)},
		{number: 2, web: newWebClient(instance.url)},
	}
	traffic := newTraffic(catalogue, clients, settings{products: 100, reads: 5000, changes: 100})
	running, fail := context.WithCancelCause(context.Background())
	wait := traffic.start(running, fail)
	eventually(t, "both instances are found out", func() bool {
		return traffic.sightings[0].snapshot().violation != "" && traffic.sightings[1].snapshot().violation != ""
	})
	fail(nil)
	wait()

	if cause := context.Cause(running); cause != context.Canceled {
		t.Errorf("the traffic failed: %v", cause)
	}
	v := newVerdict(time.Second, nil, traffic)
	if !strings.HasPrefix(v.violation, "instance ") || !strings.Contains(v.violation, "served version 1 of ") {
		t.Errorf("the violation reads %q", v.violation)
	}
	if v.changed == 0 || v.unconfirmed != v.changed+v.cleared {
		t.Errorf("%d of %d changes are unconfirmed, want all", v.unconfirmed, v.changed+v.cleared)
	}
}

func TestChangesReachTheOtherInstance(t *testing.T) {
	redis := miniredis.RunT(t)
	catalogue := newCatalogue(100, time.Millisecond)
	source, err := serve(catalogue.handler())
	if err != nil {
		t.Fatal(err)
	}
	defer source.close()
	var clients []*instanceClient
	for number := 1; number <= 2; number++ {
		service, err := newService(t.Context(), childSettings{redis: redis.Addr(), channel: "test"},
			newSourceClient(source.url), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := service.close(); err != nil {
				t.Error(err)
			}
		}()
		server, err := serve(service.handler())
		if err != nil {
			t.Fatal(err)
		}
		defer server.close()
		clients = append(clients, &instanceClient{number: number, web: newWebClient(server.url)})
	}

	version := func(reads []read, err error) int64 {
		if err != nil {
			t.Fatal(err)
		}
		return reads[0].version
	}
	product := func(tr *traffic) int64 { return version(tr.readProducts(t.Context(), 1, 7)) }
	price := func(tr *traffic) int64 { return version(tr.readPrices(t.Context(), 1, skuOf(7))) }
	changes := []struct {
		name   string
		change func(*traffic) error
		served func(*traffic) int64
		want   int64
	}{
		{"product", func(tr *traffic) error { return tr.changeProduct(t.Context(), 0, 7) }, product, 2},
		{"category", func(tr *traffic) error { return tr.changeCategory(t.Context(), 0, 7) }, product, 3},
		{"price", func(tr *traffic) error { return tr.changePrice(t.Context(), 0, skuOf(7)) }, price, 2},
	}
	for _, test := range changes {
		t.Run(test.name, func(t *testing.T) {
			traffic := newTraffic(catalogue, clients, settings{products: 100, reads: 1, changes: 1})
			if err := test.change(traffic); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the other serves it", func() bool { return test.served(traffic) == test.want })
			if n := len(traffic.sightings[0].snapshot().effects); n != 0 {
				t.Errorf("%d effects were measured where the change was told, want none", n)
			}
			if n := len(traffic.sightings[1].snapshot().effects); n != 1 {
				t.Errorf("%d effects were measured in the other, want 1", n)
			}
		})
	}
}

func TestMissingItemIsNotFound(t *testing.T) {
	source, err := serve(newCatalogue(100, 0).handler())
	if err != nil {
		t.Fatal(err)
	}
	defer source.close()
	client := newSourceClient(source.url)
	if _, err := client.product(t.Context(), 101); !errors.Is(err, nearcache.ErrNotFound) {
		t.Errorf("product: %v", err)
	}
	if _, err := client.price(t.Context(), "SKU-007"); !errors.Is(err, nearcache.ErrNotFound) {
		t.Errorf("price: %v", err)
	}
	if _, err := client.setPrice(t.Context(), "SKU-101", 1); !errors.Is(err, nearcache.ErrNotFound) {
		t.Errorf("set price: %v", err)
	}
}

// eventually polls until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for tick := time.Tick(5 * time.Millisecond); !condition(); {
		select {
		case <-tick:
		case <-limit:
			t.Fatalf("waited too long until %s", what)
		}
	}
}
