#!/bin/sh
# Checks what a build needs: a C and C++ compiler with make, Python 3 with pip, and Rust. Missing
# Debian packages are installed where apt and root are there; else one line names them.
set -eu

missing=''
command -v cc >/dev/null 2>&1 && command -v c++ >/dev/null 2>&1 && command -v make >/dev/null 2>&1 || missing="$missing build-essential"
command -v python3 >/dev/null 2>&1 || missing="$missing python3"
python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -q >&2
        # shellcheck disable=SC2086 # a list of packages
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2
    else
        echo "toolchain: install these packages first:$missing" >&2
        exit 1
    fi
fi
command -v cargo >/dev/null 2>&1 || {
    echo "toolchain: cargo isn't there: install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
}
