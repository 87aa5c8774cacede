#!/usr/bin/env bash
# The Go benchmarks of a commit and of the tree, compared by benchstat. Called by
# make bench. BENCH_BASE is the commit (the previous one), BENCH_PKGS what to
# measure, BENCH_COUNT how often; BENCH_GO_ARGS goes to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${BENCH_BASE:-HEAD~1}
read -ra packages <<<"${BENCH_PKGS:-./...}"
read -ra more <<<"${BENCH_GO_ARGS:-}"
count=${BENCH_COUNT:-6}

if ! commit=$(git rev-parse --verify --quiet "$base^{commit}"); then
    echo "There is no commit $base to compare with (a shallow clone, or the first commit): name one, as in BENCH_BASE=<commit> make bench" >&2
    exit 1
fi
dir=$PWD/.cache/bench
mkdir -p "$dir"
measure() { # where, and into which file
    (cd "$1" && go test -run '^$' -bench . -benchmem -count "$count" -timeout 60m "${more[@]}" "${packages[@]}") | tee "$2.tmp" || return 1
    mv "$2.tmp" "$2"
}

# One measurement of a commit serves all trees that are compared with it in the
# same way.
how=$(sha256sum <<<"$count ${packages[*]} ${more[*]} $(go version)" | cut -c1-12)
before=$dir/$commit-$how.txt
if [[ ! -e $before ]]; then
    tree=$dir/tree-$commit
    git worktree prune
    [[ -d $tree ]] || git worktree add --quiet --detach "$tree" "$commit"
    trap 'git worktree remove --force "$tree"' EXIT
    echo "=== $(git log -1 --format='%h %s' "$commit")"
    measure "$tree" "$before"
fi
echo "=== the tree"
measure . "$dir/tree.txt"
echo
.cache/bin/benchstat "$(git rev-parse --short "$commit")=$before" "tree=$dir/tree.txt"
