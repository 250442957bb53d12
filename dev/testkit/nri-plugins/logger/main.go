// Logger is an NRI plugin on the reference implementation's stub: it writes each event as one line of JSON to the file
// that its configuration names.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct {
	lock sync.Mutex
	out  *os.File
}

type line struct {
	Event      string   `json:"event"`
	Pod        string   `json:"pod,omitempty"`
	Container  string   `json:"container,omitempty"`
	State      string   `json:"state,omitempty"`
	Pods       []string `json:"pods,omitempty"`
	Containers []string `json:"containers,omitempty"`
	Note       string   `json:"note,omitempty"`
}

func (p *plugin) log(l line) {
	p.lock.Lock()
	defer p.lock.Unlock()
	text, err := json.Marshal(l)
	if err == nil && p.out != nil {
		_, err = fmt.Fprintln(p.out, string(text))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "logger:", err)
	}
}

func (p *plugin) event(name string, pod *api.PodSandbox, container *api.Container) error {
	l := line{Event: name, Pod: pod.GetId()}
	if container != nil {
		l.Container, l.State = container.GetId(), container.GetState().String()
	}
	p.log(l)
	return nil
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	out, err := os.OpenFile(strings.TrimSpace(config), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	p.out = out
	p.log(line{Event: "Configure", Note: runtime + " " + version})
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	l := line{Event: "Synchronize"}
	for _, pod := range pods {
		l.Pods = append(l.Pods, pod.GetId())
	}
	for _, container := range containers {
		l.Containers = append(l.Containers, container.GetId())
	}
	p.log(l)
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RunPodSandbox", pod, nil)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.event("UpdatePodSandbox", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("PostUpdatePodSandbox", pod, nil)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("StopPodSandbox", pod, nil)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RemovePodSandbox", pod, nil)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return nil, nil, p.event("CreateContainer", pod, container)
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("PostCreateContainer", pod, container)
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("StartContainer", pod, container)
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("PostStartContainer", pod, container)
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	return nil, p.event("UpdateContainer", pod, container)
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("PostUpdateContainer", pod, container)
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.event("StopContainer", pod, container)
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("RemoveContainer", pod, container)
}

func main() {
	s, err := stub.New(&plugin{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "logger:", err)
		os.Exit(1)
	}
}
