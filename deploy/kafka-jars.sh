#!/bin/sh
# Brings the jars of a real Apache Kafka into a cache folder and prints that folder.
#
# The tests start their broker from them. What is fetched is named in tests/kafka/pom.xml and
# resolved by Maven. The folder is $ICTFLOW_KAFKA, else ~/.cache/ictflow/kafka/VERSION. Where it
# is complete already nothing is run, and nothing is fetched.
set -eu

fail() {
    echo "kafka-jars: $*" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
pom=$here/../tests/kafka/pom.xml
[ -f "$pom" ] || fail "no $pom"
version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$pom")
[ -n "$version" ] || fail "$pom names no kafka.version"
folder=${ICTFLOW_KAFKA:-${HOME:?HOME is unset}/.cache/ictflow/kafka/$version}

# A changed pom is another set of jars.
sum=$(cksum <"$pom")
if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$sum" ]; then
    echo "$folder"
    exit 0
fi

# Nothing that isn't ours is ever replaced.
if [ -e "$folder" ] && [ ! -f "$folder/complete" ]; then
    fail "$folder is there and isn't a folder of these jars: remove it, or set ICTFLOW_KAFKA"
fi
command -v java >/dev/null 2>&1 || fail "java isn't there: install a JDK 17 or newer"
command -v mvn >/dev/null 2>&1 || fail "mvn isn't there: install Maven 3"

mkdir -p "$(dirname -- "$folder")"
# Into a folder of our own first: two runs at once don't meet, and a broken one leaves nothing.
fresh=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' HUP INT TERM
mvn --batch-mode --quiet -Dstyle.color=never --file "$pom" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$fresh/libs" >&2 ||
    fail "Maven failed to resolve Kafka $version: see above"
ls "$fresh/libs/kafka-server-$version.jar" >/dev/null 2>&1 || fail "Maven brought no Kafka $version"
echo "$sum" >"$fresh/complete"

# Beside one that another run completed meanwhile, ours isn't needed.
if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$sum" ]; then
    echo "$folder"
    exit 0
fi
rm -rf "$folder"
mv "$fresh" "$folder"
echo "$folder"
