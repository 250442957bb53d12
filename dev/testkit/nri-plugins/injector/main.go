// Injector is an NRI plugin on the reference implementation's stub: it adjusts containers by what annotations of their
// pods say.
//
//	inject.test/env     NAME=value
//	inject.test/mount   /on/the/node:/in/the/container
//	inject.test/device  /dev/name:major:minor   a character device
//	inject.test/shares  n   CPU shares, set by an update of its own once the container runs
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct {
	stub stub.Stub
}

func parts(pod *api.PodSandbox, key, separator string, count int) ([]string, bool) {
	value, ok := pod.GetAnnotations()["inject.test/"+key]
	found := strings.SplitN(value, separator, count)
	return found, ok && len(found) == count
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, _ *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	adjust := &api.ContainerAdjustment{}
	if env, ok := parts(pod, "env", "=", 2); ok {
		adjust.AddEnv(env[0], env[1])
	}
	if mount, ok := parts(pod, "mount", ":", 2); ok {
		adjust.AddMount(&api.Mount{
			Source: mount[0], Destination: mount[1], Type: "bind", Options: []string{"bind", "ro"},
		})
	}
	if device, ok := parts(pod, "device", ":", 3); ok {
		major, err := strconv.ParseInt(device[1], 10, 64)
		if err != nil {
			return nil, nil, err
		}
		minor, err := strconv.ParseInt(device[2], 10, 64)
		if err != nil {
			return nil, nil, err
		}
		adjust.AddDevice(&api.LinuxDevice{
			Path: device[0], Type: "c", Major: major, Minor: minor, FileMode: api.FileMode(os.FileMode(0o666)),
		})
	}
	return adjust, nil, nil
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	value, ok := pod.GetAnnotations()["inject.test/shares"]
	if !ok {
		return nil
	}
	shares, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return err
	}
	update := &api.ContainerUpdate{}
	update.SetContainerId(container.GetId())
	update.SetLinuxCPUShares(shares)
	go func() {
		if _, err := p.stub.UpdateContainers([]*api.ContainerUpdate{update}); err != nil {
			fmt.Fprintln(os.Stderr, "injector:", err)
		}
	}()
	return nil
}

func main() {
	p := &plugin{}
	s, err := stub.New(p)
	if err == nil {
		p.stub = s
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "injector:", err)
		os.Exit(1)
	}
}
