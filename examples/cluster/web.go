package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nearcache/nearcache"
)

// webServer is an HTTP server on a free port of the loopback interface.
type webServer struct {
	url    string
	server *http.Server
	served chan struct{} // closed when the server's goroutine has ended
}

func serve(handler http.Handler) (*webServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &webServer{
		url:    "http://" + listener.Addr().String(),
		server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second},
		served: make(chan struct{}),
	}
	go func() {
		defer close(s.served)
		_ = s.server.Serve(listener) // always http.ErrServerClosed, by close
	}()
	return s, nil
}

// close lets requests that are under way finish, for a second.
func (s *webServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.server.Shutdown(ctx) != nil {
		_ = s.server.Close()
	}
	<-s.served
}

func reply(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(value) // fails only if the client has gone
}

// webClient calls one server and keeps its connections.
type webClient struct {
	base string
	http *http.Client
}

func newWebClient(base string) webClient {
	return webClient{base: base, http: &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	}}
}

// call makes a request and reads the JSON answer into result, unless that is nil.
func (c webClient) call(ctx context.Context, method, path string, query url.Values, result any) (code int, err error) {
	target := c.base + path
	if query != nil {
		target += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the query, which may be a page long
		}
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		return response.StatusCode, fmt.Errorf("%s %s: %s: %s",
			method, path, response.Status, strings.TrimSpace(string(body)))
	}
	if result == nil {
		return response.StatusCode, nil
	}
	if err := json.Unmarshal(body, result); err != nil {
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return response.StatusCode, nil
}

// sourceClient is the source as an instance sees it.
type sourceClient struct{ web webClient }

func newSourceClient(base string) *sourceClient { return &sourceClient{web: newWebClient(base)} }

func (c *sourceClient) product(ctx context.Context, id int64) (p Product, err error) {
	code, err := c.web.call(ctx, http.MethodGet, "/products/"+strconv.FormatInt(id, 10), nil, &p)
	return p, notFound(code, err)
}

func (c *sourceClient) price(ctx context.Context, sku string) (p Price, err error) {
	code, err := c.web.call(ctx, http.MethodGet, "/prices/"+url.PathEscape(sku), nil, &p)
	return p, notFound(code, err)
}

func (c *sourceClient) setPrice(ctx context.Context, sku string, cents int64) (p Price, err error) {
	query := url.Values{"cents": {strconv.FormatInt(cents, 10)}}
	code, err := c.web.call(ctx, http.MethodPut, "/prices/"+url.PathEscape(sku), query, &p)
	return p, notFound(code, err)
}

// notFound tells the cache that an item does not exist, in the cache's terms.
func notFound(code int, err error) error {
	if code == http.StatusNotFound {
		return errors.Join(nearcache.ErrNotFound, err)
	}
	return err
}

// instanceClient is an instance as its users see it.
type instanceClient struct {
	number int
	web    webClient
}

func (c *instanceClient) products(ctx context.Context, ids []int64) (products []Product, err error) {
	list := make([]byte, 0, 8*len(ids))
	for i, id := range ids {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, id, 10)
	}
	_, err = c.web.call(ctx, http.MethodGet, "/products", url.Values{"ids": {string(list)}}, &products)
	return products, c.named(err)
}

func (c *instanceClient) prices(ctx context.Context, skus []string) (prices []Price, err error) {
	_, err = c.web.call(ctx, http.MethodGet, "/prices", url.Values{"skus": {strings.Join(skus, ",")}}, &prices)
	return prices, c.named(err)
}

// The writes report whether Redis has confirmed that the others will hear.

func (c *instanceClient) productChanged(ctx context.Context, id int64) (confirmed bool, err error) {
	code, err := c.web.call(ctx, http.MethodPost, fmt.Sprintf("/products/%d/changed", id), nil, nil)
	return code == http.StatusOK, c.named(err)
}

func (c *instanceClient) categoryChanged(ctx context.Context, name string) (confirmed bool, err error) {
	code, err := c.web.call(ctx, http.MethodPost, "/categories/"+url.PathEscape(name)+"/changed", nil, nil)
	return code == http.StatusOK, c.named(err)
}

func (c *instanceClient) setPrice(ctx context.Context, sku string, cents int64) (p Price, confirmed bool, err error) {
	query := url.Values{"cents": {strconv.FormatInt(cents, 10)}}
	code, err := c.web.call(ctx, http.MethodPut, "/prices/"+url.PathEscape(sku), query, &p)
	return p, code == http.StatusOK, c.named(err)
}

func (c *instanceClient) stats(ctx context.Context) (s nearcache.BackplaneStats, err error) {
	_, err = c.web.call(ctx, http.MethodGet, "/stats", nil, &s)
	return s, c.named(err)
}

func (c *instanceClient) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("instance %d: %w", c.number, err)
}
