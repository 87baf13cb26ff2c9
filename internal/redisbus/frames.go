package redisbus

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// go-redis allocates as much memory as the head of a reply announces, before the rest has
// arrived, and reads nested arrays by recursion. A length may exceed all memory. A stack
// that overflows ends the process, and recover cannot prevent that. So each connection
// follows what it reads, and fails at a reply beyond its bounds before go-redis has seen
// the reply's head.

// replyBounds is what one reply may have at most.
type replyBounds struct {
	bytes    int // all of it, as it is sent
	elements int // of all its arrays
}

const (
	mostReplyDepth = 8        // of arrays in arrays
	mostReplyLine  = 16 << 10 // bytes of what is not a string with a length
	mostReplyHead  = 24       // bytes of a line that are examined: a type and a length
)

// ordinaryReplies bounds the replies to all commands that have no bounds of their own.
var ordinaryReplies = replyBounds{bytes: 1 << 20, elements: 1 << 16}

// subscribedReplies returns the bounds for a subscription: the largest message that is
// understood, and the names around it. A larger one ends the connection, and the next
// subscription finds that a message was missed.
func subscribedReplies(maxBodyBytes int) replyBounds {
	return replyBounds{bytes: maxBodyBytes + 1<<20, elements: ordinaryReplies.elements}
}

// errBadReply is why a connection that works was given up.
var errBadReply = errors.New("what Redis, or what is in its place, sent cannot be a reply")

// replyFrames follows the replies on a connection. It knows RESP2, the only protocol that
// connections speak here.
type replyFrames struct {
	bounds replyBounds

	string   int                 // bytes of a string still to come, including its line end
	line     int                 // bytes of an unfinished line so far
	head     []byte              // the first of them
	left     [mostReplyDepth]int // elements still to come of each open array
	depth    int                 // of the open arrays
	bytes    int                 // of this reply so far, including strings still to come
	elements int
	err      error // of a reply that was refused; nothing is read after it
}

// follow reads the next bytes of a connection. It returns an error if a reply is refused.
func (f *replyFrames) follow(b []byte) error {
	for len(b) > 0 && f.err == nil {
		if f.string > 0 {
			n := min(f.string, len(b))
			f.string -= n
			b = b[n:]
			if f.string == 0 {
				f.ended()
			}
			continue
		}
		piece := b
		end := bytes.IndexByte(b, '\n') + 1
		if end > 0 {
			piece = b[:end]
		}
		b = b[len(piece):]
		f.head = append(f.head, piece[:min(len(piece), mostReplyHead-len(f.head))]...)
		switch f.line += len(piece); {
		case f.line > mostReplyLine:
			f.refuse("a line without end")
		case end > 0:
			f.lineEnded()
		}
	}
	return f.err
}

// lineEnded reads the line that has just ended.
func (f *replyFrames) lineEnded() {
	kind, length := f.head[0], 0
	switch kind {
	case '+', '-', ':':
	case '$', '*':
		var err error
		length, err = strconv.Atoi(string(bytes.TrimSuffix(f.head[1:], []byte("\r\n"))))
		if err != nil || length < -1 || f.line > len(f.head) {
			f.refuse("a length that is none")
			return
		}
	default:
		f.refuse("a type that RESP2 does not have")
		return
	}
	if kind == '*' && length > f.bounds.elements-f.elements {
		f.refuse("more elements than asked for")
		return
	}
	if kind == '$' && length > f.bounds.bytes {
		f.refuse("more bytes than asked for")
		return
	}
	f.bytes += f.line
	if kind == '$' {
		f.bytes += max(length, 0)
	}
	if f.bytes > f.bounds.bytes {
		f.refuse("more bytes than asked for")
		return
	}
	if kind == '*' && length > 0 && f.depth == mostReplyDepth {
		f.refuse("arrays in arrays")
		return
	}
	f.line, f.head = 0, f.head[:0]
	switch {
	case kind == '$' && length >= 0:
		f.string = length + len("\r\n")
	case kind == '*' && length > 0:
		f.elements += length
		f.left[f.depth] = length
		f.depth++
	default:
		f.ended()
	}
}

// ended notes the end of an element, and of the arrays whose last element it is.
func (f *replyFrames) ended() {
	for f.depth > 0 {
		if f.left[f.depth-1]--; f.left[f.depth-1] > 0 {
			return
		}
		f.depth--
	}
	f.bytes, f.elements = 0, 0
}

func (f *replyFrames) refuse(why string) {
	f.err = fmt.Errorf("%w: %s: %q", errBadReply, why, f.head)
}
