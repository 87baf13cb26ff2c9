package redisbus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/internal/barrier"
)

// This file says what errors from Redis, or on the way to it, mean.

// answer is an error that Redis answered with.
type answer string

func (a answer) Error() string { return string(a) }

// RedisError makes it a redis.Error, as go-redis's own answers are.
func (answer) RedisError() {}

var _ redis.Error = answer("")

var (
	// errGivenUp is the error of a command whose connection was dropped.
	errGivenUp = errors.New("the connection was given up, since Redis was not heard of any more")

	// errSentinel is why a server that answers well cannot be used.
	errSentinel = errors.New("the address is that of a Redis Sentinel, which is not supported; give the address of the Redis that it watches")

	// errSpeaksTLS is why a connection without TLS was closed.
	errSpeaksTLS = errors.New("the port speaks TLS: set ssl=True (or rediss://, or Redis.TLSConfig)")

	// errMute is the error of a connection that the server closed before it sent anything.
	errMute = errors.New("the server hung up without a word (if the port speaks TLS, set ssl=True)")
)

// answered reports whether err is an error that Redis answered with.
func answered(err error) bool {
	var a redis.Error
	return errors.As(err, &a)
}

// inScript matches what precedes the error that a script has met, in errors of Redis
// before 7.0:
//
//	ERR Error running script (call to f_<sha>): @user_script:12: @user_script: 12: -READONLY You can't …
var inScript = regexp.MustCompile(`@user_script: ?\d+: `)

// code returns the code of an error that Redis answered with, such as READONLY, or of the
// error that a script has met. It is empty if err is not an answer, or has no code but ERR.
func code(err error) string {
	var a redis.Error
	if !errors.As(err, &a) {
		return ""
	}
	text := strings.TrimPrefix(a.Error(), "ERR ") // some servers put it before the code
	if strings.HasPrefix(text, "Error running script") || strings.HasPrefix(text, "@user_script") {
		if at := inScript.FindAllStringIndex(text, -1); at != nil {
			text = text[at[len(at)-1][1]:]
		}
		text = strings.TrimPrefix(strings.TrimPrefix(text, "-"), "ERR ")
	}
	word, _, _ := strings.Cut(text, " ")
	if word == "" || word == "ERR" || strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return ""
	}
	return word
}

// saysAnswer reports whether Redis answered with an error that contains text.
func saysAnswer(err error, text string) bool {
	var a redis.Error
	return errors.As(err, &a) && strings.Contains(a.Error(), text)
}

// explain adds to an error what it means for the user, and removes secrets from it.
func (s *Server) explain(err error) error {
	if err == nil {
		return nil
	}
	err = s.scrubbed(err)
	switch code(err) {
	case "WRONGTYPE":
		return fmt.Errorf("the key %s or %s is not nearcache's, delete it: %w", s.positionKey, s.clearsKey, err)
	case "OOM", "READONLY", "NOREPLICAS", "MISCONF":
		return fmt.Errorf("the key %s has to be written, and Redis takes no writes: %w", s.positionKey, err)
	case "MOVED", "ASK":
		return fmt.Errorf("the address is that of a node of a Redis Cluster, which is not supported: %w", err)
	}
	if saysAnswer(err, "unknown command") && saysAnswer(strippedOfCase(err), "eval") {
		return fmt.Errorf("the server knows no scripts; if it is a Redis Sentinel, which is not supported, "+
			"give the address of the Redis that it watches: %w", err)
	}
	return err
}

// strippedOfCase returns an answer in lower case.
func strippedOfCase(err error) error { return answer(strings.ToLower(err.Error())) }

// refused reports whether another attempt would fail the same way: Redis answered with an
// error that does not pass with time, its certificate does not verify, or it is not the
// kind of server that is needed.
func refused(err error) bool {
	switch code(err) {
	case "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "BUSY", "NOREPLICAS", "MISCONF":
		return false
	}
	if saysAnswer(err, "max number of clients") {
		return false
	}
	var certificate *tls.CertificateVerificationError
	return answered(err) || errors.As(err, &certificate) ||
		errors.Is(err, errSentinel) || errors.Is(err, errSpeaksTLS) || errors.Is(err, errNoTLS)
}

// connectionLost reports whether err says that the connection was dead, and not that Redis
// answered with an error or was too slow to answer.
func connectionLost(err error) bool {
	var slow net.Error
	return err != nil && !answered(err) && !(errors.As(err, &slow) && slow.Timeout()) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, barrier.ErrPanic)
}

// hungUp reports whether err says that the other end closed the connection.
func hungUp(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// inTime returns an error that says that time ran out, if that is what err comes from. When
// ctx ends, its connection is closed, and an error about that would say nothing.
func inTime(ctx context.Context, err error) error {
	switch {
	case err == nil || answered(err):
	case ctx.Err() != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)):
		return fmt.Errorf("no answer from Redis: %w", context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer from Redis in time: %w", err)
	}
	return err
}

// argumentsFollow is what Redis says before it repeats the arguments of a command that it
// does not know. Those of HELLO or AUTH have the password, or the beginning of it.
const argumentsFollow = ", with args beginning with"

// scrub removes from a text what is, or may be, secret.
func (s *Server) scrub(text string) string {
	before, _, repeated := strings.Cut(text, argumentsFollow)
	if repeated {
		text = before
	}
	for _, secret := range s.credentials.secrets() {
		text = strings.ReplaceAll(text, secret, "*****")
	}
	return text
}

// scrubbed returns err. If its text has a secret in it, scrubbed returns an error without
// the secret instead, which wraps nothing and is an answer if err is one.
func (s *Server) scrubbed(err error) error {
	text := err.Error()
	clean := s.scrub(text)
	switch {
	case clean == text:
		return err
	case answered(err):
		return answer(clean)
	}
	return errors.New(clean)
}
