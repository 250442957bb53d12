package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

// The example server: it gives a URL for each line.
type server struct {
	input  io.Writer
	output *bufio.Reader
}

func (s *server) url(line string, arguments ...any) (string, error) {
	if _, err := fmt.Fprintf(s.input, line+"\n", arguments...); err != nil {
		return "", err
	}
	answer, err := s.output.ReadString('\n')
	if err != nil {
		return "", err
	}
	answer = strings.TrimSpace(answer)
	if !strings.HasPrefix(answer, "http") {
		return "", errors.New(answer)
	}
	return answer, nil
}

type check struct {
	name string
	run  func(s *server, t transport) error
}

// What any transport must do.
var commandChecks = []check{
	{"output and exit code", func(s *server, t transport) error {
		var out, err bytes.Buffer
		code, failure := run(s, t, "exec stdout stderr -- echo out; echo err >&2; exit 7", nil, &out, &err)
		return same(failure, "code", 7, code, "stdout", "out\n", out.String(), "stderr", "err\n", err.String())
	}},
	{"success", func(s *server, t transport) error {
		var out bytes.Buffer
		code, failure := run(s, t, "exec stdout -- echo fine", nil, &out, nil)
		return same(failure, "code", 0, code, "stdout", "fine\n", out.String())
	}},
	{"a signal", func(s *server, t transport) error {
		code, failure := run(s, t, "exec stdout -- kill -TERM $$", nil, io.Discard, nil)
		return same(failure, "code", 143, code)
	}},
	output,
	attach,
	attachFails,
	leave,
	used,
}

var output = check{"10 MB out", func(s *server, t transport) error {
	var out bytes.Buffer
	code, failure := run(s, t, "exec stdout -- yes | head -c 10000000", nil, &out, nil)
	return same(failure, "code", 0, code, "length", 10000000, out.Len())
}}

var attach = check{"attach", func(s *server, t transport) error {
	var out bytes.Buffer
	in, writer := io.Pipe()
	go func() { fmt.Fprintln(writer, "hello") }()
	code, failure := run(s, t, "attach stdin stdout -- read x; echo $x; exit 3", in, &out, nil)
	return same(failure, "code", 0, code, "stdout", "hello\n", out.String())
}}

var attachFails = check{"an attach that fails", func(s *server, t transport) error {
	_, failure := run(s, t, "attach stdout -- missing", nil, io.Discard, nil)
	return contains(failure, "error attaching to container: no such container")
}}

var leave = check{"a client that leaves", func(s *server, t transport) error {
	dir, err := os.MkdirTemp("", "streaming")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "pid")
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	address, err := s.url("exec stdout -- echo $$ > %s; exec sleep 1000", file)
	if err != nil {
		return err
	}
	if err := t.run(ctx, address, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		return errors.New("no error though it was cancelled")
	}
	pid, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for range 500 {
		if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); os.IsNotExist(err) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("its process still runs after 5 s")
}}

var used = check{"a URL that was used", func(s *server, t transport) error {
	address, err := s.url("exec stdout -- true")
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdout: io.Discard}
	if err := t.run(context.Background(), address, options); err != nil {
		return err
	}
	if err := t.run(context.Background(), address, options); err == nil {
		return errors.New("it was good twice")
	}
	return nil
}}

// What a transport must do in which stdin can be closed.
var stdinChecks = []check{
	{"20 MB in and out", func(s *server, t transport) error {
		sent := make([]byte, 20<<20)
		rand.New(rand.NewSource(1)).Read(sent)
		var out bytes.Buffer
		code, failure := run(s, t, "exec stdin stdout -- cat", bytes.NewReader(sent), &out, nil)
		want, found := fmt.Sprintf("%x", sha256.Sum256(sent)), fmt.Sprintf("%x", sha256.Sum256(out.Bytes()))
		return same(failure, "code", 0, code, "length", len(sent), out.Len(), "digest", want, found)
	}},
	{"end of stdin", func(s *server, t transport) error {
		var out bytes.Buffer
		code, failure := run(s, t, "exec stdin stdout -- wc -c", strings.NewReader("12345"), &out, nil)
		return same(failure, "code", 0, code, "stdout", "5\n", out.String())
	}},
}

// What a transport must do that knows sizes of terminals.
var terminalChecks = []check{
	{"a terminal and its sizes", func(s *server, t transport) error {
		address, err := s.url("exec tty stdin stdout -- while read x; do stty size; done; exit 5")
		if err != nil {
			return err
		}
		in, writer := io.Pipe()
		out, seen := io.Pipe()
		sizes := make(queue, 1)
		ended := make(chan error, 1)
		go func() {
			options := remotecommand.StreamOptions{Stdin: in, Stdout: seen, Tty: true, TerminalSizeQueue: sizes}
			ended <- t.run(context.Background(), address, options)
			seen.Close()
		}()
		lines := bufio.NewReader(out)
		for _, size := range []remotecommand.TerminalSize{{Width: 80, Height: 24}, {Width: 200, Height: 60}} {
			sizes <- size
			want := fmt.Sprintf("%d %d\r\n", size.Height, size.Width)
			for found := ""; found != want; {
				fmt.Fprintln(writer)
				if found, err = lines.ReadString('\n'); err != nil {
					return fmt.Errorf("waiting for %q: %w", want, err)
				}
			}
		}
		// The terminal's own end of file.
		go writer.Write([]byte{4})
		go io.Copy(io.Discard, out)
		code, failure := code(<-ended)
		return same(failure, "code", 5, code)
	}},
}

type queue chan remotecommand.TerminalSize

func (q queue) Next() *remotecommand.TerminalSize {
	size, open := <-q
	if !open {
		return nil
	}
	return &size
}

func code(err error) (int, error) {
	var exit utilexec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitStatus(), nil
	}
	return 0, err
}

func run(s *server, t transport, line string, in io.Reader, out, errs io.Writer) (int, error) {
	address, err := s.url("%s", line)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return code(t.run(ctx, address, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: errs}))
}

// Triples of a name, what was wanted, what was found.
func same(err error, triples ...any) error {
	if err != nil {
		return err
	}
	for ; len(triples) > 0; triples = triples[3:] {
		if triples[1] != triples[2] {
			return fmt.Errorf("%v: want %.200q, found %.200q", triples[0], fmt.Sprint(triples[1]), fmt.Sprint(triples[2]))
		}
	}
	return nil
}

func contains(err error, text string) error {
	if err == nil || !strings.Contains(err.Error(), text) {
		return fmt.Errorf("want an error with %q, found %v", text, err)
	}
	return nil
}

var forwardChecks = []check{
	{"200 connections at once, half-closed", func(s *server, t transport) error {
		remote, stop, err := counter()
		if err != nil {
			return err
		}
		defer stop()
		return forwarded(s, t, remote, func(local string) error {
			var group sync.WaitGroup
			failures := make(chan error, 200)
			for n := range 200 {
				group.Go(func() {
					if err := count(local, 1000*n); err != nil {
						failures <- err
					}
				})
			}
			group.Wait()
			close(failures)
			return <-failures
		})
	}},
	{"1000 connections one after another", func(s *server, t transport) error {
		remote, stop, err := counter()
		if err != nil {
			return err
		}
		defer stop()
		return forwarded(s, t, remote, func(local string) error {
			for n := range 1000 {
				if err := count(local, n); err != nil {
					return fmt.Errorf("connection %d: %w", n, err)
				}
			}
			return nil
		})
	}},
	{"a port at which nobody listens", func(s *server, t transport) error {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		port := listener.Addr().(*net.TCPAddr).Port
		listener.Close()
		address, err := s.url("forward %d", port)
		if err != nil {
			return err
		}
		_, stop, ended, err := t.forward(address, []string{fmt.Sprintf("0:%d", port)}, io.Discard)
		if err != nil {
			return err
		}
		stop()
		return <-ended
	}},
}

// Runs with a local address that leads to the remote port.
func forwarded(s *server, t transport, remote int, use func(local string) error) error {
	address, err := s.url("forward %d", remote)
	if err != nil {
		return err
	}
	var log bytes.Buffer
	forwarder, stop, ended, err := t.forward(address, []string{fmt.Sprintf("0:%d", remote)}, &log)
	if err != nil {
		return err
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	err = use(fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	stop()
	return errors.Join(err, <-ended)
}

// A port that answers with the number of bytes that came before the client's end.
func counter() (port int, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				length, _ := io.Copy(io.Discard, connection)
				fmt.Fprint(connection, length)
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port, func() { listener.Close() }, nil
}

func count(address string, length int) error {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := connection.Write(make([]byte, length)); err != nil {
		return err
	}
	if err := connection.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(connection)
	return same(err, "answer", fmt.Sprint(length), string(answer))
}

func checks(arguments []string) (int, error) {
	if len(arguments) == 0 {
		return 2, errors.New("check SERVER [FILTER]")
	}
	filter := ""
	if len(arguments) > 1 {
		filter = arguments[1]
	}
	program := exec.Command(arguments[0], strings.Fields(os.Getenv("SERVER_ARGUMENTS"))...)
	program.Stderr = os.Stderr
	input, err := program.StdinPipe()
	if err != nil {
		return 1, err
	}
	answers, err := program.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := program.Start(); err != nil {
		return 1, err
	}
	s := &server{input, bufio.NewReader(answers)}
	passed, failed := 0, 0
	try := func(t transport, groups ...[]check) {
		for _, group := range groups {
			for _, c := range group {
				name := fmt.Sprintf("%v: %s", t, c.name)
				if !strings.Contains(name, filter) {
					continue
				}
				if err := c.run(s, t); err != nil {
					failed++
					fmt.Printf("FAILED %s: %v\n", name, err)
				} else {
					passed++
					fmt.Printf("ok %s\n", name)
				}
			}
		}
	}
	// Before version 4 there is no exit code.
	old := []check{output, attach, attachFails, leave, used}
	try(transport{}, commandChecks, stdinChecks, terminalChecks, forwardChecks)
	try(transport{protocols: []string{"v4.channel.k8s.io"}}, commandChecks, stdinChecks, terminalChecks)
	try(transport{protocols: []string{"v3.channel.k8s.io"}}, old, stdinChecks)
	try(transport{protocols: []string{"v2.channel.k8s.io"}}, old, stdinChecks)
	// The first version's client ends with the outputs, without a look at the error, and never closes stdin.
	try(transport{protocols: []string{"channel.k8s.io"}}, []check{output, attach, leave})
	try(transport{websocket: true}, commandChecks, stdinChecks, terminalChecks, forwardChecks)
	try(transport{websocket: true, protocols: []string{"v4.channel.k8s.io"}}, commandChecks, terminalChecks)
	input.Close()
	if err := program.Wait(); err != nil {
		return 1, fmt.Errorf("the server: %w", err)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return 1, nil
	}
	return 0, nil
}
