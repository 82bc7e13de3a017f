#!/bin/sh
# Brings a real schema registry into a cache folder and prints that folder.
#
# The tests start it from there. What is fetched is named in tests/registry/pom.xml and resolved by
# Maven. The folder is $ICTFLOW_REGISTRY, else ~/.cache/ictflow/registry/VERSION. Where it is
# complete already nothing is run, and nothing is fetched.
set -eu

fail() {
    echo "registry-app: $*" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
pom=$here/../tests/registry/pom.xml
[ -f "$pom" ] || fail "no $pom"
version=$(sed -n 's|.*<apicurio.version>\(.*\)</apicurio.version>.*|\1|p' "$pom")
[ -n "$version" ] || fail "$pom names no apicurio.version"
folder=${ICTFLOW_REGISTRY:-${HOME:?HOME is unset}/.cache/ictflow/registry/$version}

# A changed pom is another registry.
sum=$(cksum <"$pom")
if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$sum" ]; then
    echo "$folder"
    exit 0
fi

# Nothing that isn't ours is ever replaced.
if [ -e "$folder" ] && [ ! -f "$folder/complete" ]; then
    fail "$folder is there and isn't a folder of this registry: remove it, or set ICTFLOW_REGISTRY"
fi
command -v java >/dev/null 2>&1 || fail "java isn't there: install a JDK 17 or newer"
command -v mvn >/dev/null 2>&1 || fail "mvn isn't there: install Maven 3"

mkdir -p "$(dirname -- "$folder")"
# Into a folder of our own first: two runs at once don't meet, and a broken one leaves nothing.
fresh=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' HUP INT TERM
mvn --batch-mode --quiet -Dstyle.color=never --file "$pom" dependency:unpack-dependencies \
    -DoutputDirectory="$fresh/app" -DmarkersDirectory="$fresh/markers" >&2 ||
    fail "Maven failed to resolve Apicurio $version: see above"
ls "$fresh/app/apicurio-registry-app-$version-runner.jar" >/dev/null 2>&1 || fail "Maven brought no Apicurio $version"
echo "$sum" >"$fresh/complete"

# Beside one that another run completed meanwhile, ours isn't needed.
if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$sum" ]; then
    echo "$folder"
    exit 0
fi
rm -rf "$folder"
mv "$fresh" "$folder"
echo "$folder"
