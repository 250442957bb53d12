// A client of the streaming server made of Kubernetes' own client library: exec and attach as `kubectl` does them, and
// port-forward, each over SPDY and over WebSocket.
//
//	streaming exec    [flags] URL              copies its own streams; its exit code is the command's
//	streaming attach  [flags] URL              the same
//	streaming forward [flags] URL LOCAL:REMOTE...   says "ready", and goes on until its input ends
//	streaming check   SERVER [FILTER]          runs all checks against the example server of criox-streaming
//
// Build: GOWORK=off CGO_ENABLED=0 go build -trimpath -o streaming .
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// How a client reaches a URL.
type transport struct {
	websocket bool
	// Of the remote command; empty offers what kubectl offers.
	protocols []string
}

func (t transport) String() string {
	name := "spdy"
	if t.websocket {
		name = "websocket"
	}
	if len(t.protocols) > 0 {
		name += " " + t.protocols[0]
	}
	return name
}

// Certificates of the tests sign themselves.
func config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func (t transport) executor(address string) (remotecommand.Executor, error) {
	if t.websocket {
		if len(t.protocols) > 0 {
			return remotecommand.NewWebSocketExecutorForProtocols(config(), http.MethodGet, address, t.protocols...)
		}
		return remotecommand.NewWebSocketExecutor(config(), http.MethodGet, address)
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if len(t.protocols) == 0 {
		return remotecommand.NewSPDYExecutor(config(), http.MethodPost, parsed)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(roundTripper, upgrader, http.MethodPost, parsed, t.protocols...)
}

func (t transport) run(ctx context.Context, address string, options remotecommand.StreamOptions) error {
	executor, err := t.executor(address)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, options)
}

func (t transport) dialer(address string) (httpstream.Dialer, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if t.websocket {
		return portforward.NewSPDYOverWebsocketDialer(parsed, config())
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config())
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, parsed), nil
}

// A forwarder that is ready; stop ends it.
func (t transport) forward(address string, ports []string, log io.Writer) (forwarder *portforward.PortForwarder, stop func(), ended <-chan error, err error) {
	dialer, err := t.dialer(address)
	if err != nil {
		return nil, nil, nil, err
	}
	stopped, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err = portforward.New(dialer, ports, stopped, ready, io.Discard, log)
	if err != nil {
		return nil, nil, nil, err
	}
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
		return forwarder, func() { close(stopped) }, failed, nil
	case err := <-failed:
		return nil, nil, nil, err
	}
}

func main() {
	// client-go leaves an error that it has no one to give to on the standard error, which is not ours to judge.
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: streaming exec|attach|forward|check ...")
		os.Exit(2)
	}
	code, err := 2, error(nil)
	switch os.Args[1] {
	case "exec", "attach":
		code, err = command(os.Args[1], os.Args[2:])
	case "forward":
		code, err = forward(os.Args[2:])
	case "check":
		code, err = checks(os.Args[2:])
	default:
		err = fmt.Errorf("%s is none of exec, attach, forward, check", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	os.Exit(code)
}

func flags(name string, arguments []string) (set *flag.FlagSet, t *transport, parse func() error) {
	set = flag.NewFlagSet(name, flag.ContinueOnError)
	t = &transport{}
	kind := set.String("transport", "websocket", "spdy or websocket")
	return set, t, func() error {
		if err := set.Parse(arguments); err != nil {
			return err
		}
		t.websocket = *kind == "websocket"
		if !t.websocket && *kind != "spdy" {
			return fmt.Errorf("%s is no transport", *kind)
		}
		return nil
	}
}

func command(name string, arguments []string) (int, error) {
	set, t, parse := flags(name, arguments)
	stdin := set.Bool("stdin", false, "send standard input")
	stdout := set.Bool("stdout", false, "read standard output")
	stderr := set.Bool("stderr", false, "read standard error")
	tty := set.Bool("tty", false, "the process has a terminal")
	if err := parse(); err != nil {
		return 2, err
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *stdout {
		options.Stdout = os.Stdout
	}
	if *stderr {
		options.Stderr = os.Stderr
	}
	err := t.run(context.Background(), set.Arg(0), options)
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitStatus(), nil
	default:
		return 255, err
	}
}

func forward(arguments []string) (int, error) {
	set, t, parse := flags("forward", arguments)
	if err := parse(); err != nil {
		return 2, err
	}
	if set.NArg() < 2 {
		return 2, errors.New("forward URL LOCAL:REMOTE...")
	}
	forwarder, stop, ended, err := t.forward(set.Arg(0), set.Args()[1:], os.Stderr)
	if err != nil {
		return 1, err
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return 1, err
	}
	for _, port := range ports {
		fmt.Printf("ready %d:%d\n", port.Local, port.Remote)
	}
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	select {
	case <-over:
		stop()
		return 0, nil
	case err := <-ended:
		return 1, err
	}
}
