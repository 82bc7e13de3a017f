#!/bin/sh
# Checks what a build and the demo need: a C and C++ compiler with make, Python 3 with pip, and Rust.
# Missing Debian packages are installed where that is allowed, else one line names them.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
fail() {
    echo "toolchain: $*" >&2
    exit 1
}

set --
for program in cc c++ make; do
    command -v "$program" >/dev/null 2>&1 || { set -- build-essential; break; }
done
command -v python3 >/dev/null 2>&1 || set -- "$@" python3
python3 -m pip --version >/dev/null 2>&1 || set -- "$@" python3-pip
"$here/packages.sh" "$@"

# Rust isn't installed for you: Debian's own is too old, and a toolchain is a person's choice.
wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$here/../Cargo.toml")
cargo=${CARGO:-cargo}
command -v "$cargo" >/dev/null 2>&1 || fail "$cargo isn't there: install Rust $wanted or newer, see https://rustup.rs"
found=$("$cargo" --version | sed -n 's/^cargo \([0-9]*\.[0-9]*\).*/\1/p')
newer=$(printf '%s\n%s\n' "$wanted" "$found" | sort -t. -k1,1n -k2,2n | tail -n 1)
[ "$found" = "$newer" ] || fail "Rust $found is too old: install $wanted or newer, see https://rustup.rs"
