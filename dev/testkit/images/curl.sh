#!/bin/sh
# The part of curl that the node suite's images are asked for: GET, to standard output.
set -eu
limit='' url=''
while [ $# -gt 0 ]; do
  case $1 in
    -g | -q | -s | -S | -f | -k | -L | -sS | -gqs) ;;
    -m | --max-time | --connect-timeout) limit=$2; shift ;;
    -*) echo "curl: this stand-in has no option $1" >&2; exit 2 ;;
    *) url=$1 ;;
  esac
  shift
done
[ -n "$url" ] || { echo "curl: no address" >&2; exit 2; }
exec wget -q -O - --no-check-certificate ${limit:+-T "$limit"} "$url"
