package systemtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// scripted is a server that speaks RESP and says what a test has it say.
type scripted struct {
	addr string

	// greeting is written to each new connection, which is then closed; empty: it is
	// talked to.
	greeting string

	// reply returns the answer to a command, as bytes of RESP; empty: the connection is
	// closed. The first word of the command is in upper case.
	reply func(command []string) string

	mu   sync.Mutex // guards seen
	seen []string   // commands
}

// startScripted starts a server. It ends with the test.
func startScripted(t *testing.T, s *scripted) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.addr = listener.Addr().String()
	var running sync.WaitGroup
	var mu sync.Mutex // guards conns
	conns := map[net.Conn]bool{}
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			running.Go(func() {
				defer func() { _ = c.Close() }()
				s.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return s
}

func (s *scripted) serve(c net.Conn) {
	if s.greeting != "" {
		_, _ = io.WriteString(c, s.greeting)
		return
	}
	in := bufio.NewReader(c)
	for {
		command, err := readCommand(in)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, strings.Join(command, " "))
		s.mu.Unlock()
		reply := s.reply(command)
		if reply == "" {
			return
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
	}
}

// commands returns how many commands began so.
func (s *scripted) commands(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, command := range s.seen {
		if strings.HasPrefix(command, prefix) {
			n++
		}
	}
	return n
}

func readCommand(in *bufio.Reader) ([]string, error) {
	number := func(mark string) (int, error) {
		line, err := in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		digits, ok := strings.CutPrefix(strings.TrimSpace(line), mark)
		if !ok {
			return 0, fmt.Errorf("no RESP: %q", line)
		}
		return strconv.Atoi(digits)
	}
	words, err := number("*")
	if err != nil {
		return nil, err
	}
	command := make([]string, words)
	for i := range command {
		length, err := number("$")
		if err != nil {
			return nil, err
		}
		word := make([]byte, length+2)
		if _, err := io.ReadFull(in, word); err != nil {
			return nil, err
		}
		command[i] = string(word[:length])
	}
	command[0] = strings.ToUpper(command[0])
	return command, nil
}

// asServer answers what every new connection begins with, as a server of a mode does;
// empty: it is something else.
func asServer(mode string, command []string) string {
	switch command[0] {
	case "HELLO":
		return fmt.Sprintf("*6\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:2\r\n$4\r\nmode\r\n$%d\r\n%s\r\n", len(mode), mode)
	case "AUTH", "SELECT", "CLIENT":
		return "+OK\r\n"
	case "SUBSCRIBE":
		reply := ""
		for i, channel := range command[1:] {
			reply += fmt.Sprintf("*3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:%d\r\n", len(channel), channel, i+1)
		}
		return reply
	}
	return ""
}
