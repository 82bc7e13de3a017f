#!/bin/sh
# Brings what only the tests need: kcat (an independent Kafka client), a JDK and Maven (for a real
# Kafka), and a Python environment for the oracle and the reader. What is there is left alone.
set -eu

missing=''
command -v kcat >/dev/null 2>&1 || missing="$missing kcat"
command -v java >/dev/null 2>&1 || missing="$missing openjdk-17-jdk-headless"
command -v mvn >/dev/null 2>&1 || missing="$missing maven"
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -q >&2
        # shellcheck disable=SC2086 # a list of packages
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2
    else
        echo "test-tools: install these packages first:$missing" >&2
        exit 1
    fi
fi

python=${ICTFLOW_PYTHON:-$HOME/.cache/ictflow/python/bin/python}
wanted=$(dirname "$0")/../tests/oracle/requirements.txt
stamp=$(dirname "$python")/../ictflow-requirements.txt
if ! cmp -s "$wanted" "$stamp"; then
    [ -x "$python" ] || python3 -m venv "$(dirname "$(dirname "$python")")"
    "$python" -m pip install -q --disable-pip-version-check -r "$wanted" >&2
    cp "$wanted" "$stamp"
fi
