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
tree=$dir/tree-$commit
mkdir -p "$dir"
git worktree prune
[[ -d $tree ]] || git worktree add --quiet --detach "$tree" "$commit"
trap 'git worktree remove --force "$tree"' EXIT

measure() { # where, and into which file
    local measured
    # Others would only be linked, each time.
    measured=$(cd "$1" && go list -f '{{$dir := .Dir}}{{range .TestGoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}' "${packages[@]}" |
        { xargs -r grep -ls '^func Benchmark' || true; } | xargs -r -n1 dirname | sort -u)
    if [[ -z $measured ]]; then
        echo "There is no benchmark in ${packages[*]} of $1" >&2
        return 1
    fi
    # shellcheck disable=SC2086 # one word for each package
    (cd "$1" && go test -run '^$' -bench . -benchmem -count 1 -timeout 60m "${more[@]}" $measured) | tee -a "$2"
}

# In turns: a machine's mood changes, and both should have the same share of it.
: >"$dir/before.txt" >"$dir/tree.txt"
for ((round = 1; round <= count; round++)); do
    echo "=== $round of $count: $(git log -1 --format='%h %s' "$commit")"
    measure "$tree" "$dir/before.txt"
    echo "=== $round of $count: the tree"
    measure "$PWD" "$dir/tree.txt"
done
echo
.cache/bin/benchstat "$(git rev-parse --short "$commit")=$dir/before.txt" "tree=$dir/tree.txt"
