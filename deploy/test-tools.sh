#!/bin/sh
# Brings the programs that the tests check against and that aren't built here: kcat, an
# independent Kafka client, from Debian's packages. Where it is there nothing is run.
set -eu

if command -v kcat >/dev/null 2>&1; then
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || {
    echo "test-tools: kcat isn't there and neither is apt-get: install kcat by hand" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || {
    echo "test-tools: kcat isn't there: run this script as root, or install kcat by hand" >&2
    exit 1
}
apt-get update -q >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends kcat >&2
