#!/bin/sh
# Installs Debian packages: as root, or by sudo where it asks no password. Where neither may, or
# there is no apt, one line names the packages and the script fails.
#
#   deploy/packages.sh NAME...
set -eu

[ "$#" -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "packages: install these first, or what your system calls them: $*" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    root=''
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    root='sudo -n'
else
    echo "packages: install these first: sudo apt-get install $*" >&2
    exit 1
fi
echo "packages: installing $*" >&2
# A list of packages that is old is better than none: the install says what it misses.
$root apt-get update -q >&2 || true
$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
