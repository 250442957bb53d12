# What is made of a report of critest's, on this machine and on the booted node. To be sourced by a script that has
# $peers; $skips is the list of specs that may be skipped.
#
#   critest_specs REPORT                      one line a spec: its name, its state and, if it didn't pass, why; tabs between
#   critest_expected WHEN...                  names of the specs that may be skipped
#   critest_failures SPECS                    prints what failed, and fails if something did
#   critest_skips SPECS EXPECTED              prints how the skips differ from a file of names, and fails if they do
#   critest_counts HANDLER SECONDS SPECS      one line
#   critest_table CRUN-SPECS RUNC-SPECS       the counts and every spec, in Markdown

skips=dev/conformance/critest-skips.tsv

critest_specs() {
  jq -r '.[].SpecReports[] | select(.LeafNodeType == "It")
    | [((.ContainerHierarchyTexts // []) + [.LeafNodeText] | join(" ")), .State, (.Failure.Message // "" | split("\n") | .[0:3] | join(" ") | .[0:300])] | @tsv' "$1"
}

# What was not in focus is no skip of the second look: critest_whole WHOLE WEBSOCKET
critest_whole() {
  cat "$1"
  awk -F '\t' '$2 != "skipped" { print "(WebSocket) " $0 }' "$2"
}

critest_expected() {
  awk -F '\t' -v when=" $* " '/^[^#]/ && index(when, " " $1 " ") { print $2 }' $skips | LC_ALL=C sort
}

# Anything but these two is a failure: failed, timedout, panicked, interrupted, aborted.
critest_failures() {
  awk -F '\t' '$2 != "passed" && $2 != "skipped" { printf "FAILED  %s\n        %s\n", $1, $3; n++ } END { exit n > 0 }' "$1"
}

critest_skips() {
  local skipped spec
  skipped=$(awk -F '\t' '$2 == "skipped" { print $1 }' "$1" | LC_ALL=C sort)
  LC_ALL=C comm -13 "$2" <(echo "$skipped") | while IFS= read -r spec; do
    [ -z "$spec" ] || printf 'NEWLY SKIPPED  %s\n               %s\n' "$spec" "$(awk -F '\t' -v s="$spec" '$1 == s { print $3 }' "$1")"
  done
  LC_ALL=C comm -23 "$2" <(echo "$skipped") | sed 's/^/IN THE LIST OF SKIPS, BUT NOT SKIPPED  /'
  [ "$skipped" = "$(cat "$2")" ]
}

critest_counts() {
  awk -F '\t' -v handler="$1" -v seconds="$2" '{ if ($1 ~ /^\(WebSocket\)/) { if ($2 == "passed") again++ } else n[$2]++; if ($2 != "passed" && $2 != "skipped") failed++ }
    END { printf "%s: %d passed, %d failed, %d skipped, %d of the streaming specs passed again through WebSocket; %d s\n", handler, n["passed"], failed, n["skipped"], again, seconds }' "$3"
}

critest_table() {
  local handler specs
  printf '| | passed | failed | skipped |\n|---|---|---|---|\n'
  for handler in crun runc; do
    specs=$1
    [ $handler = crun ] || specs=$2
    awk -F '\t' -v program="$("$peers/bin/$handler" --version | sed -n '1s/ version / /p')" '$1 !~ /^\(WebSocket\)/ { n[$2]++; if ($2 != "passed" && $2 != "skipped") failed++ }
      END { printf "| %s | %d | %d | %d |\n", program, n["passed"], failed, n["skipped"] }' "$specs"
  done
  printf '\n| spec | crun | runc |\n|---|---|---|\n'
  LC_ALL=C join -t "$(printf '\t')" -a 1 -a 2 -e '(did not run)' -o 0,1.2,2.2 <(cut -f 1,2 "$1" | LC_ALL=C sort -t "$(printf '\t')" -k 1,1) \
    <(cut -f 1,2 "$2" | LC_ALL=C sort -t "$(printf '\t')" -k 1,1) |
    sed -e 's/|/\\|/g' -e 's/^/| /' -e 's/\t/ | /g' -e 's/$/ |/'
}

# Another release of a runtime is no other result: critest_same TABLE NEW-TABLE
critest_same() { diff -u <(sed -E 's/^(\| (crun|runc)) [^ ]+ /\1 /' "$1") <(sed -E 's/^(\| (crun|runc)) [^ ]+ /\1 /' "$2"); }
