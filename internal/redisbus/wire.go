package redisbus

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// wire is a connection that keeps the beginning of what the server says, until
// deafen. A server that takes nobody says why and hangs up, and go-redis may find out
// by a write that fails, and never read it. A reply beyond its bounds ends it.
type wire struct {
	net.Conn
	secure  bool // by TLS
	deaf    atomic.Bool
	replies replyFrames // for one reader at a time; its bounds are those of the command under way

	mu    sync.Mutex // guards heard
	heard []byte
}

const (
	mostHeard     = 512                   // bytes
	lastWordsTime = 50 * time.Millisecond // to read what a server said before it hung up
	mostSaid      = 200                   // bytes of it that are shown
)

func (w *wire) Read(b []byte) (int, error) {
	if w.replies.err != nil {
		return 0, w.replies.err
	}
	n, err := w.Conn.Read(b)
	if n > 0 && !w.deaf.Load() {
		w.mu.Lock()
		w.heard = append(w.heard, b[:min(n, mostHeard-len(w.heard))]...)
		w.mu.Unlock()
	}
	if refused := w.replies.follow(b[:n]); refused != nil {
		return 0, refused
	}
	return n, err
}

// deafen is called when the server has accepted the connection.
func (w *wire) deafen() { w.deaf.Store(true) }

// explain returns the error that has ended the connection's beginning with the reason
// that the server gave. Nothing else may read meanwhile.
func (w *wire) explain(err error) error {
	if err == nil || answered(err) || w.deaf.Load() {
		return err
	}
	if len(w.said()) == 0 && hungUp(err) {
		_ = w.SetReadDeadline(time.Now().Add(lastWordsTime))
		_, _ = w.Read(make([]byte, mostHeard))
	}
	said := w.said()
	switch {
	case !w.secure && len(said) > 2 && (said[0] == 0x15 || said[0] == 0x16) && said[1] == 3: // a record of TLS: an alert, a handshake
		return fmt.Errorf("%w: %w", errSpeaksTLS, err)
	case len(said) == 0 && !w.secure && hungUp(err):
		return fmt.Errorf("%w: %w", errMute, err)
	}
	if line := firstError(said); line != "" && hungUp(err) {
		return fmt.Errorf("%w (then the connection ended: %w)", answer(line), err)
	}
	return err
}

func (w *wire) said() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.heard)
}

// firstError returns the first line of what a server said that is an error, without
// its mark.
func firstError(said []byte) string {
	for line := range bytes.Lines(said) {
		if line[0] == '-' {
			line = bytes.TrimSpace(line[1:])
			if len(line) > mostSaid {
				line = append(bytes.Clone(line[:mostSaid]), "…"...)
			}
			return string(line)
		}
	}
	return ""
}
