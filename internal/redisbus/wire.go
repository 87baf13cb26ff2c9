package redisbus

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// wire is a connection that keeps the beginning of what the server sends, until deafen. A
// server that accepts no clients says why and hangs up. go-redis may notice that by a write
// that fails, and never read the reason. A reply beyond its bounds ends the connection.
type wire struct {
	net.Conn
	secure  bool // by TLS
	deaf    atomic.Bool
	replies replyFrames // for one reader at a time; its bounds are those of the current command

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

// explain adds to err, which a new connection has failed with, the reason that the server
// gave. Nothing else may read from the connection meanwhile.
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

// firstError returns the first error among the lines that a server sent, without its
// leading "-".
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
