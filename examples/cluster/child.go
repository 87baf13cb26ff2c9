package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// An instance is this program again, told apart by its first argument. What it
// needs to know is in its environment, where other users do not see it.
const (
	instanceCommand = "instance"

	redisVariable   = "REDIS_CONNECTION_STRING"
	channelVariable = "CLUSTER_CHANNEL"
	sourceVariable  = "CLUSTER_SOURCE"
	sharedVariable  = "CLUSTER_SHARED"
)

// childSettings are what an instance needs to know.
type childSettings struct {
	redis   string // a connection string
	channel string
	source  string // the URL of the catalogue
	shared  bool
}

func (s childSettings) environ() []string {
	return append(os.Environ(),
		redisVariable+"="+s.redis, channelVariable+"="+s.channel, sourceVariable+"="+s.source,
		sharedVariable+"="+strconv.FormatBool(s.shared))
}

func instanceMain() int {
	err := runInstance(childSettings{
		redis:   os.Getenv(redisVariable),
		channel: os.Getenv(channelVariable),
		source:  os.Getenv(sourceVariable),
		shared:  os.Getenv(sharedVariable) == "true",
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	return exitOK
}

// runInstance serves until stdin ends, which the parent holds open: however the
// parent ends, its instances end too.
func runInstance(s childSettings) (err error) {
	// A terminal sends Ctrl-C to the instances too. When they end is the parent's
	// decision: it asks them for their statistics first.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()

	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	service, err := newService(ctx, s, newSourceClient(s.source), logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.close()) }()

	server, err := serve(service.handler())
	if err != nil {
		return err
	}
	defer server.close() // before the service, so that no request finds it closed
	fmt.Println(server.url)

	<-ctx.Done()
	return nil
}
