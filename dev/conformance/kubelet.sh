# A standalone kubelet on the node of node.sh. To be sourced after it, inside scripts/sandboxed.
#
#   kubelet_private KIND       hides what a kubelet writes to behind file systems that end with the namespace
#   kubelet_configures KIND    writes its configuration, with the lines of $kubelet_extra; KIND is that of the socket:
#                              default or other
#   kubelet_starts             and waits until it is healthy
#   kubelet_says PATH          GET on its read-only port; kubelet_says_tls PATH on the other
#   kubelet_statistics KIND    checks the summary and the metrics
#   kubelet_undo               gives back what it changed on the machine

# What the kubelet sets and doesn't set back, with what it was; made once, before its first start.
kubelet_settings=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

kubelet_private() {
  local setting
  for setting in "${kubelet_settings[@]}"; do
    echo "$setting $(cat "/proc/sys/$setting")" >> "$dir/settings"
  done
  # The kubelet writes below /var/log and /var/lib/kubelet wherever its directories are, and CNI plugins below /var/lib/cni.
  mount -t tmpfs -o mode=755 hidden /var/log
  if [ ! -d /var/lib/kubelet ]; then mkdir /var/lib/kubelet && touch "$dir/made-var-lib-kubelet"; fi
  mount -t tmpfs -o mode=755 hidden /var/lib/kubelet
  if [ "$1" = default ]; then
    # CRI-O's own path, which cAdvisor takes without asking. The machine's /run stays as it is.
    mount -t tmpfs -o mode=755 hidden /run
    mkdir -p /run/crio /run/lock
    socket=/var/run/crio/crio.sock
    printf '%s\n' "runtime-endpoint: unix://$socket" "image-endpoint: unix://$socket" 'timeout: 120' > "$dir/crictl.yaml"
  fi
}

kubelet_undo() {
  local setting value hierarchy
  [ -s "$dir/settings" ] || return 0
  while read -r setting value; do
    echo "$value" > "/proc/sys/$setting" 2> /dev/null || true
  done < "$dir/settings"
  for hierarchy in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/self/mounts); do
    # Empty ones only: what isn't empty is a leak, and stays to be found.
    find "$hierarchy/$(basename "$dir")" -depth -type d -exec rmdir {} + 2> /dev/null || true
  done
  if [ -e "$dir/made-var-lib-kubelet" ]; then
    umount -l /var/lib/kubelet && rmdir /var/lib/kubelet
    rm -f "$dir/made-var-lib-kubelet"
  fi
}

kubelet_configures() {
  local hierarchy
  mkdir -p "$dir"/{manifests,kubelet,pki,plugins,pods,shared}
  # In every hierarchy, or the kubelet says that its root doesn't exist.
  for hierarchy in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/self/mounts); do
    mkdir -p "$hierarchy/$(basename "$dir")"
  done
  echo 'nameserver 127.0.0.1' > "$dir/resolv.conf"
  cat > "$dir/kubelet.yaml" <<CONF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$socket
staticPodPath: $dir/manifests
fileCheckFrequency: 1s
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: ${kubelet_address-127.0.0.1}
readOnlyPort: 10255
cgroupRoot: /$(basename "$dir")
podLogsDir: $dir/pods
volumePluginDir: $dir/plugins
makeIPTablesUtilChains: false
resolvConf: $dir/resolv.conf
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
${kubelet_extra-}
CONF
  if [ "$1" = other ]; then
    echo 'featureGates: {PodAndContainerStatsFromCRI: true}' >> "$dir/kubelet.yaml"
  fi
}

# kubelet_starts [OPTION]...
kubelet_starts() {
  "$peers/bin/kubelet" --config "$dir/kubelet.yaml" --root-dir "$dir/kubelet" --cert-dir "$dir/pki" --hostname-override node1 --v=2 "$@" >> "$dir/kubelet.log" 2>&1 < /dev/null &
  kubelet=$!
  for _ in $(seq 300); do
    [ "$(curl -s --noproxy '*' http://127.0.0.1:10248/healthz)" = ok ] && return
    kill -0 "$kubelet" 2> /dev/null || { kubelet=''; grep -E '^E|Error|error' "$dir/kubelet.log" | tail -n 5 >&2; die "the kubelet ended at once"; }
    sleep 0.1
  done
  die "the kubelet wasn't healthy within 30 s"
}

kubelet_says() { curl -sSf --noproxy '*' -m 20 "http://127.0.0.1:10255$1"; }
kubelet_says_tls() { local path=$1; shift; curl -sSfk --noproxy '*' -m 20 "$@" "https://127.0.0.1:10250$path"; }

summary() { kubelet_says /stats/summary | jq -e --arg name web-node1 "$1"; }
# A series with a value of at least $3, by default 1: metric PATH SERIES [LEAST]
metric() { kubelet_says_tls "/metrics/$1" | grep -E "$2" | awk -v least="${3-1}" '$2 >= least { found = 1; print $1 } END { exit !found }' | head -n 1; }

kubelet_statistics() {
  local web='.pods[] | select(.podRef.name == $name)'
  step "statistics"
  within 40 "summary: CPU and memory of a container" summary "$web | .containers[] | select(.name == \"server\") | .cpu.usageCoreNanoSeconds > 0 and .memory.workingSetBytes > 0 and .memory.rssBytes >= 0"
  within 20 "summary: momentary CPU use" summary "$web | .containers[] | select(.name == \"client\") | .cpu.usageNanoCores != null"
  within 40 "summary: a container's file system and log" summary "$web | .containers[] | select(.name == \"server\") | .rootfs.usedBytes > 0 and .rootfs.inodesUsed > 0 and .logs.usedBytes >= 0"
  within 20 "summary: the pod's CPU and memory" summary "$web | .cpu.usageCoreNanoSeconds > 0 and .memory.workingSetBytes > 0"
  within 40 "summary: the pod's network" summary "$web | .network | .name == \"eth0\" and .rxBytes > 0 and .txBytes > 0"
  within 20 "summary: the pod's processes" summary "$web | .process_stats.process_count > 0"
  within 20 "summary: the images' file system" summary '.node.runtime.imageFs | .usedBytes > 0 and .capacityBytes > 0'
  within 20 "summary: every running pod is there" summary '[.pods[].podRef.name] | contains(["web-node1", "together-node1", "host-node1", "talker-node1"])'
  within 20 "metrics/resource: a container's CPU" metric resource '^container_cpu_usage_seconds_total\{.*container="server".*pod="web-node1"' 0.000001
  # The CRI's metrics have whole numbers only: a server that did little has used no second yet.
  within 40 "metrics/cadvisor: a container's CPU" metric cadvisor '^container_cpu_usage_seconds_total\{.*container="server".*pod="web-node1"' 0
  within 20 "metrics/cadvisor: a container's working set" metric cadvisor '^container_memory_working_set_bytes\{.*container="server".*pod="web-node1"'
  within 20 "metrics/cadvisor: the pod's network" metric cadvisor '^container_network_receive_bytes_total\{.*pod="web-node1"'
  within 20 "metrics/cadvisor: a container's file system" metric cadvisor '^container_fs_usage_bytes\{.*container="server".*pod="web-node1"'
  if [ "$1" = default ]; then
    info() { curl -sSf --noproxy '*' -m 5 --unix-socket "$socket" http://crio/info | jq -e '.storage_driver == "overlay" and .cgroup_driver == "cgroupfs"'; }
    within 5 "HTTP /info on the socket" info
  fi
}
