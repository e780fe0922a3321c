#!/usr/bin/env bash
# What of ours stands on transformers, tested on other releases of it.
#   tests/versions.sh                    the oldest allowed, the pinned and the newest allowed
#   tests/versions.sh oldest 5.20.2      these alone
#   QUICK=1 tests/versions.sh oldest     only the tests marked `versions` (CI)
# Each has an environment of its own in .venv-versions, kept between runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
places=(tests/methods tests/common tests/cli/test_ask.py tests/test_hub.py tests/test_promises.py tests/test_thinker.py)
pinned="$(sed -n 's/^transformers==//p' constraints.txt)"
allowed="$(sed -n 's/^ *"transformers\(.*\)",$/\1/p' pyproject.toml)"
oldest="$(sed 's/>=\([^,]*\),.*/\1/' <<<"$allowed")"

spec_of() {
    case "$1" in
        oldest) echo "==$oldest" ;;
        pinned) echo "==$pinned" ;;
        newest) echo "$allowed" ;;
        *) echo "==$1" ;;
    esac
}

# The pins hold but for transformers and, on another release of it, what each bounds in its own way.
install() {
    local folder="$1" spec="$2" loose='transformers|huggingface_hub|tokenizers|safetensors' pip
    [ "$spec" != "==$pinned" ] || loose=transformers
    [ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
    grep -vE "^($loose)==" constraints.txt >"$folder/constraints.txt"
    pip=("$folder/bin/python" -m pip --disable-pip-version-check --no-input -qq install
        -c "$folder/constraints.txt")
    # torch alone first, as in the Makefile
    "${pip[@]}" torch hatchling
    "${pip[@]}" --upgrade "transformers$spec"
    "${pip[@]}" --no-build-isolation -e '.[peft,viz]' "transformers$spec" hypothesis pytest pytest-xdist
}

[ "$#" -gt 0 ] || set -- oldest pinned newest
failed=()
for name in "$@"; do
    folder=".venv-versions/$name"
    install "$folder" "$(spec_of "$name")"
    "$folder/bin/python" -c 'import transformers as t; print("transformers", t.__version__)'
    # whole files to a worker: what a module's tests share is then made once
    "$folder/bin/python" -m pytest -n 2 --dist loadfile -p no:cacheprovider -q \
        -m "not slow${QUICK:+ and versions}" "${places[@]}" || failed+=("$name")
done
[ "${#failed[@]}" -eq 0 ] || { echo "failed on: ${failed[*]}" >&2; exit 1; }
