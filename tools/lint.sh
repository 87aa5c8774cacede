#!/usr/bin/env bash
# All checks run even when one of them finds something. Called by make lint.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bin=$PWD/.cache/bin
failed=()

check() {
    local name=$1
    shift
    "$@" || failed+=("$name")
}

# Folders that start with a dot hold what was downloaded, not our code.
formatted() {
    local files
    files=$(gofmt -l ./*.go ./*/) || return 1
    [[ -z $files ]] || { echo "not formatted; run gofmt -w on:"; echo "$files"; return 1; }
}

# Go's compiler would not see one in another language, or in a page.
merged() {
    local left
    left=$(git grep -nE '^(<{7}|>{7}) ' -- . 2>/dev/null)
    [[ -z $left ]] || { echo "left by a merge:"; echo "$left"; return 1; }
}

check gofmt formatted
check "merge markers" merged
check "go vet" go vet ./...
check staticcheck "$bin/staticcheck" ./...
check depguard "$bin/depguard" ./...
# The rules themselves: each forbidden import, planted, must be found.
check "layering rules" go -C tools test -count=1 ./...

if ((${#failed[@]})); then
    printf 'lint: %s found something\n' "${failed[@]}"
    exit 1
fi
echo "lint: clean"
