# A node for the suites: criox with everything of its own in one directory, and a registry on loopback that stands in for the
# suites' registries. To be sourced by a script that runs inside scripts/sandboxed; $name is that script's name.
#
#   node_directories         makes $dir and names what is in it
#   node_cleans_up           at any end of the script: ends what was started, removes what is left
#   node_serves_images       starts the registry of scripts/peers images
#   node_configures H        writes criox's configuration with H (crun or runc) as the default handler
#   node_starts_criox        and waits until it answers
#   node_stops               ends criox and the registry in order, and fails if something is left
#
# and for scripts that look at one thing after the other, a table ($table) and a verdict ($bad):
#   checked WHAT STATUS [DETAIL]
#   within SECONDS WHAT COMMAND...

die() { echo "$name: $*" >&2; exit 1; }
step() { printf '\n== %s\n' "$*"; }

# What a script has found out so far, and whether something of it was wrong.
table='' bad=0

# One line of the table: checked WHAT STATUS [DETAIL]
checked() {
  local said=ok
  [ "$2" = 0 ] || { said=FAILED; bad=1; }
  table+=$(printf '%-6s  %s%s' $said "$1" "${3:+ ($3)}")$'\n'
  printf '%-6s  %s%s\n' $said "$1" "${3:+ ($3)}"
}

# Asks until a command succeeds: within SECONDS WHAT COMMAND...
within() {
  local limit=$1 what=$2 start=$SECONDS said=''
  shift 2
  until said=$("$@" 2>&1); do
    if [ $((SECONDS - start)) -ge "$limit" ]; then
      checked "$what" 1 "not within $limit s: $(head -c 300 <<< "$said" | tr '\n' ' ')"
      return 0
    fi
    sleep 0.3
  done
  [ "$said" != true ] || said=''
  checked "$what" 0 "$(head -c 100 <<< "$said" | tr '\n' ' ')"
}

# The namespaces in which all of it runs. SysV memory too: critest leaves a segment behind.
node_enters() { exec scripts/sandboxed --net unshare --ipc bash "$PWD/scripts/$name" --inside "$@"; }

node_directories() {
  dist=$(realpath "${CRIOX_DIST:-dist}")
  peers=$(realpath -m "${CRIOX_PEERS:-${CARGO_TARGET_DIR:-target}/peers}")
  dir=$(mktemp -d "/tmp/criox-$name.XXXXXX")
  socket=$dir/criox.sock
  bridge=crioxsuite0
  criox='' registry='' events='' address=''
  mkdir -p "$dir"/{crio.conf.d,registries.d,net.d,logs,hooks,tmp,nri/{plugins,conf.d}}
  printf '%s\n' "runtime-endpoint: unix://$socket" "image-endpoint: unix://$socket" 'timeout: 120' > "$dir/crictl.yaml"
}

crictl() { timeout "${CRICTL_LIMIT:-120}" "$peers/bin/crictl" --config "$dir/crictl.yaml" "$@"; }

# Ends one of our own processes, by the number that was noted at its start: ended PID SIGNAL [SECONDS]
ended() {
  kill "-$2" "$1" 2> /dev/null || return 0
  for _ in $(seq $((${3-20} * 10))); do kill -0 "$1" 2> /dev/null || break; sleep 0.1; done
  kill -KILL "$1" 2> /dev/null || true
  wait "$1" 2> /dev/null || true
}

node_serves_images() {
  printf '%s\n' 'version: 0.1' 'log: {level: info}' "http: {addr: '127.0.0.1:0'}" \
    "storage: {filesystem: {rootdirectory: $peers/images/storage}, maintenance: {readonly: {enabled: true}}}" > "$dir/registry.yml"
  OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/registry.yml" > "$dir/registry.log" 2>&1 &
  registry=$!
  for _ in $(seq 200); do
    address=$(grep -oE 'listening on 127\.0\.0\.1:[0-9]+' "$dir/registry.log" | awk '{ print $3 }') && break
    sleep 0.05
  done
  [ -n "$address" ] || { cat "$dir/registry.log" >&2; die "docker-registry didn't start"; }
}

node_configures() {
  local handler=$1 host
  echo 'unqualified-search-registries = ["docker.io"]' > "$dir/registries.conf"
  for host in registry.k8s.io k8s.gcr.io gcr.io docker.io; do
    printf '[[registry]]\nlocation = "%s"\n[[registry.mirror]]\nlocation = "%s"\ninsecure = true\n' $host "$address" >> "$dir/registries.conf"
  done
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$dir/policy.json"
  printf '[storage]\ndriver = "overlay"\n' > "$dir/storage.conf"
  cat > "$dir/crio.conf" <<CONF
[crio]
root = "$dir/root"
runroot = "$dir/run"
log_dir = "$dir/logs"
version_file = "$dir/version"
clean_shutdown_file = "$dir/clean.shutdown"
[crio.api]
listen = "$socket"
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
default_runtime = "$handler"
cgroup_manager = "cgroupfs"
namespaces_dir = "$dir/run/ns"
container_exits_dir = "$dir/run/exits"
container_attach_socket_dir = "$dir/run/attach"
hooks_dir = ["$dir/hooks"]
[crio.runtime.runtimes.$handler]
runtime_path = "$peers/bin/$handler"
runtime_root = "$dir/run/$handler"
[crio.image]
signature_policy = "$dir/policy.json"
[crio.network]
network_dir = "$dir/net.d"
plugin_dirs = ["$peers/cni"]
[crio.stats]
# As in CRI-O no group of metrics is on by default; the suite counts on all of them.
included_pod_metrics = ["all"]
[crio.nri]
nri_listen = "$dir/nri/nri.sock"
nri_plugin_dir = "$dir/nri/plugins"
nri_plugin_config_dir = "$dir/nri/conf.d"
CONF
  cat > "$dir/net.d/10-suite.conflist" <<CONF
{"cniVersion": "1.1.0", "name": "$(basename "$dir")", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/leases", "ranges": [[{"subnet": "10.231.78.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONF
}

node_starts_criox() {
  CONTAINERS_STORAGE_CONF=$dir/storage.conf TMPDIR=$dir/tmp "$dist/criox" --config "$dir/crio.conf" --config-dir "$dir/crio.conf.d" \
    --registries-conf "$dir/registries.conf" --registries-conf-dir "$dir/registries.d" "$@" >> "$dir/criox.log" 2>&1 < /dev/null &
  criox=$!
  for _ in $(seq 300); do
    if CRICTL_LIMIT=5 crictl version > /dev/null 2>&1; then
      "$peers/bin/crictl" --config "$dir/crictl.yaml" events >> "$dir/events.out" 2> /dev/null &
      [ -z "$events" ] || ended "$events" TERM
      events=$!
      return
    fi
    kill -0 "$criox" 2> /dev/null || { criox=''; tail -n 20 "$dir/criox.log" >&2; die "criox ended at once"; }
    sleep 0.1
  done
  die "criox didn't answer within 30 s"
}

# IDs of this node's pods and containers, from its events and its log (digests among them do no harm). Not from a kubelet's
# log: that names every container of the machine.
node_ids() { cat "$dir"/events.out "$dir"/criox.log "$dir"/whole.out 2> /dev/null | grep -aoE '\b[0-9a-f]{64}\b' | sort -u > "$dir/ids" || true; }

# What names our directory or one of the IDs; one line each.
node_leftovers() {
  local pid text
  node_ids
  # The store's home is bound onto itself, for good, by everything that works on containers/storage.
  grep -F "$dir" /proc/self/mountinfo | awk -v home="$dir/root/overlay" '$5 != home { print "mount " $5 }' || true
  find /sys/fs/cgroup -mindepth 2 -type d \( -fstype cgroup -o -fstype cgroup2 \) \( -name 'crio*' -o -name '[0-9a-f]*' \) -printf 'cgroup %p\n' 2> /dev/null | grep -Ff "$dir/ids" || true
  find "$dir/run/ns" /run/netns -type f -printf 'namespace %p\n' 2> /dev/null | grep -F -e "$dir" -f "$dir/ids" || true
  find "$dir/leases" -name '[0-9]*.*' -printf 'lease of %f\n' 2> /dev/null || true
  find /run /var/lib/cni /var/lib/criox -maxdepth 6 -printf 'file %p\n' 2> /dev/null | grep -Ff "$dir/ids" || true
  ip -o link show type veth 2> /dev/null | grep "master $bridge" | sed 's/^/link /' || true
  { iptables-save; nft list ruleset; } 2> /dev/null | grep -Ff "$dir/ids" | sed 's/^/rule /' || true
  for pid in $(cd /proc && echo [0-9]*); do
    case $pid in $$ | "$BASHPID" | "$registry" | "$criox" | "$events") continue ;; esac
    # One that has ended meanwhile has no text any more; a zombie is its parent's affair.
    text=$({ tr '\0' ' ' < "/proc/$pid/cmdline"; cat "/proc/$pid/cgroup"; } 2> /dev/null) || continue
    if grep -qF -e "$dir" -f "$dir/ids" <<< "$text" && ! grep -q '^State:.*Z' "/proc/$pid/status" 2> /dev/null; then
      echo "process $pid (${text%%$'\n'*})"
    fi
  done
}

node_stops() { node_ends_well || die "criox did not end well"; }

# Not for "set -e": every step is judged by itself.
node_ends_well() {
  local left listed
  listed=$(crictl pods -q; crictl ps -aq)
  [ -z "$listed" ] || { crictl pods; crictl ps -a; echo "$name: the pods and containers above are still listed"; return 1; } >&2
  kill -0 "$criox" 2> /dev/null || { echo "$name: criox has ended by itself" >&2; return 1; }
  ended "$events" TERM
  ended "$criox" TERM
  ended "$registry" TERM
  events='' criox='' registry=''
  left=$(node_leftovers)
  [ -z "$left" ] || { printf '%s\n' "$left" "$name: the lines above were left behind" >&2; return 1; }
}

# Removes by force what a working criox would have removed.
node_sweeps() {
  local kind what
  [ -z "$criox" ] || { CRICTL_LIMIT=60 crictl rmp -fa > /dev/null 2>&1 || true; ended "$criox" TERM; }
  [ -z "$registry" ] || ended "$registry" TERM
  [ -z "$events" ] || ended "$events" TERM
  events='' criox='' registry=''
  node_leftovers | while read -r kind what _; do case $kind in process) kill -KILL "$what" 2> /dev/null || true ;; esac; done
  sleep 0.2
  node_leftovers | tac | while read -r kind what _; do
    case $kind in mount) umount -l "$what" ;; cgroup) rmdir "$what" ;; file) rm -f "$what" ;; esac 2> /dev/null || true
  done
  ip link delete $bridge 2> /dev/null || true
  umount -l "$dir/root/overlay" 2> /dev/null || true
  # A mount that could not be undone may show the machine's own files below our directory.
  if grep -qF "$dir/" /proc/self/mountinfo; then
    echo "$name: $dir still holds a mount, so it stays" >&2
  else
    rm -rf "$dir"
  fi
}

# With $CRIOX_KEEP set to a directory, what a failed run said is copied there.
node_cleans_up() {
  trap 'node_at_end $?' EXIT
  trap 'exit 130' INT TERM HUP
}

node_at_end() {
  trap - EXIT
  trap '' INT TERM HUP
  if declare -F before_sweep > /dev/null; then before_sweep || true; fi
  if [ "$1" -ne 0 ] && [ -s "$dir/criox.log" ]; then
    { echo; echo "$name: failed; criox's log ends:"; tail -n 20 "$dir/criox.log"; } >&2
  fi
  if [ -n "${CRIOX_KEEP-}" ]; then
    mkdir -p "$CRIOX_KEEP"
    cp "$dir"/*.log "$dir"/*.out "$dir"/*.json "$CRIOX_KEEP" 2> /dev/null || true
  fi
  node_sweeps
  exit "$1"
}
