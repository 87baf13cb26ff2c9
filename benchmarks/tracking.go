package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

// The pairs that rely on Redis tracking what clients hold: a client writes, and
// the other one's memory is asked until it no longer has the old version.

// rueidisPair watches DoCache.
func rueidisPair(address string) (*pair, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	const key = "bench-rueidis"
	shoot, stop := setAndWatch(address, key, func() (string, error) {
		return client.DoCache(ctx, client.B().Get().Key(key).Cache(), ttl).ToString()
	})
	return &pair{name: "rueidis", shoot: shoot, close: func() { stop(); client.Close() }}, nil
}

// trackingPair watches go-redis's own client-side cache.
func trackingPair(address string) (*pair, error) {
	client := redis.NewClient(subject.Tracking(address, 1000))
	ctx := context.Background()
	const key = "bench-csc"
	shoot, stop := setAndWatch(address, key, func() (string, error) { return client.Get(ctx, key).Result() })
	return &pair{name: "go-redis CSC", shoot: shoot, close: func() { stop(); _ = client.Close() }}, nil
}

// setAndWatch returns a shot: SET by a client of its own, and then read until that
// is seen. A read that finds the new version has gone to Redis for it, which is
// left out: what counts is when it was asked.
func setAndWatch(address, key string, read func() (string, error)) (shoot func() (time.Duration, error), stop func()) {
	writer := redis.NewClient(&redis.Options{Addr: address})
	ctx := context.Background()
	version := 0
	shoot = func() (time.Duration, error) {
		if err := writer.Set(ctx, key, strconv.Itoa(version), 0).Err(); err != nil {
			return 0, err
		}
		for start := time.Now(); ; { // until it holds what is to be invalidated
			text, err := read()
			if err != nil {
				return 0, err
			}
			if text == strconv.Itoa(version) {
				break
			}
			if time.Since(start) > giveUpIn {
				return 0, fmt.Errorf("version %d not seen within %v", version, giveUpIn)
			}
		}
		if _, err := read(); err != nil { // from memory now
			return 0, err
		}
		version++
		next := strconv.Itoa(version)
		start := time.Now()
		if err := writer.Set(ctx, key, next, 0).Err(); err != nil {
			return 0, err
		}
		var failed error
		took, err := until(start, func() bool {
			text, err := read()
			failed = err
			return err != nil || text == next
		})
		if failed != nil {
			return 0, failed
		}
		return took, err
	}
	return shoot, func() { _ = writer.Close() }
}
