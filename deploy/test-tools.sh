#!/bin/sh
# Brings what only the tests need: kcat (an independent Kafka client), a JDK and Maven (for a real
# Kafka), promtool (it judges the metrics), a browser (it opens the status page), and a Python environment for the oracle and the reader. What is there is left alone.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
fail() {
    echo "test-tools: $*" >&2
    exit 1
}

# The major version of the JDK; nothing where there is none. A runtime without javac won't do: a
# test compiles a Java client.
jdk() {
    command -v javac >/dev/null 2>&1 || return 0
    java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1
}

set --
command -v kcat >/dev/null 2>&1 || set -- "$@" kcat
command -v promtool >/dev/null 2>&1 || set -- "$@" prometheus
command -v chromium >/dev/null 2>&1 || set -- "$@" chromium
[ "$(jdk)" ] || set -- "$@" default-jdk-headless
command -v mvn >/dev/null 2>&1 || set -- "$@" maven
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || set -- "$@" python3-venv
"$here/packages.sh" "$@"
version=$(jdk)
[ "${version:-0}" -ge 17 ] || fail "the JDK is version ${version:-none}: Kafka needs 17 or newer"

# The environment is as it was asked for when the list that filled it is beside it.
python=${ICTFLOW_PYTHON:-${HOME:?HOME is unset}/.cache/ictflow/python/bin/python}
case $python in
*/bin/*) ;;
*) fail "ICTFLOW_PYTHON must be FOLDER/bin/python of an environment of its own, is $python" ;;
esac
wanted=$here/../tests/oracle/requirements.txt
folder=$(dirname -- "$(dirname -- "$python")")
stamp=$folder/ictflow-requirements.txt
if [ ! -x "$python" ] || ! cmp -s "$wanted" "$stamp"; then
    echo "test-tools: Python packages of tests/oracle/requirements.txt into $folder" >&2
    [ -x "$python" ] || python3 -m venv "$folder" || fail "$folder couldn't be made: set ICTFLOW_PYTHON"
    "$python" -m pip install -q --disable-pip-version-check -r "$wanted" >&2 ||
        fail "pip couldn't install tests/oracle/requirements.txt into $folder: see above"
    cp "$wanted" "$stamp"
fi
