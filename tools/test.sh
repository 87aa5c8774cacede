#!/usr/bin/env bash
# Every step runs, also after one has failed; the summary names each with its
# time. Called by make test, and with "full" by make test-full, which runs the long
# tests against real parts and nothing else; TESTS, a regular expression, narrows them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
what=${1:-short}
case $what in
    short) budget=$((15 * 60)) format=standard-quiet again=1 most=3 ;;
    full) budget=$((70 * 60)) format=testname again=2 most=5 ;; # a line for each: some take minutes
    *) echo "usage: test.sh [short|full]" >&2; exit 2 ;;
esac
summary=()
failed=0

step() {
    local name=$1 began=$SECONDS result=ok
    shift
    printf '\n=== %s\n' "$name"
    "$@" || { result=FAILED; failed=1; }
    summary+=("$(printf '%-6s %5ds  %s' "$result" $((SECONDS - began)) "$name")")
}

# gotestsum prints go test's lines and then lists what failed or was skipped,
# so that no test drops out unseen.
tests() { .cache/bin/gotestsum --format standard-quiet -- "$@"; }

fast() {
    local list
    list=$(go list ./...) || return 1
    # shellcheck disable=SC2046 # one argument per package
    tests -race -timeout 6m $(grep -vE '/sluice/(harness|integration|benchmarks|diskless/placeholder)(/|$)' <<<"$list")
}

# Pure code without goroutines of its own, and properties over many batches: the
# race detector would find nothing there and take minutes.
pure() { tests -timeout 6m ./diskless/placeholder/; }

real() {
    local dir
    for dir in harness integration benchmarks; do
        [[ -n $(go list "./$dir/..." 2>/dev/null) ]] || { echo "$dir has no package: its tests are missing"; return 1; }
    done
    # One package at a time: each starts its own brokers.
    # Brokers and clients of others' making have timing of their own: up to three
    # tests that fail are run once more, of the long ones five and twice, and named, so
    # that none is forgotten.
    local report failed=0
    report=$(mktemp)
    .cache/bin/gotestsum --format "$format" --rerun-fails=$again --rerun-fails-max-failures=$most --rerun-fails-report="$report" \
        --packages "./harness/... ./integration/... ./benchmarks/..." -- -p 1 -timeout "$1" "${@:2}" || failed=1
    if [[ -s $report ]]; then
        printf '\ntests that were run again:\n'
        cat "$report"
    fi
    rm -f "$report"
    return $failed
}

# The suites of other libraries and what is run with older Kafka and clients mostly
# wait: they have a process, and brokers, of their own beside the rest, and print when
# that is done.
long() {
    local beside='^TestLong(TestsOf|BrokersOf|JavaClientsOf)' printed failed=0
    if [[ -n ${TESTS:-} ]]; then
        real 70m -run "$TESTS"
        return
    fi
    printed=$(mktemp)
    real 70m -run "^TestLong" -skip "$beside" &
    local rest=$!
    if ! real 70m -run "$beside" >"$printed" 2>&1; then failed=1; fi
    wait "$rest" || failed=1
    printf '\n=== beside them\n'
    cat "$printed"
    rm -f "$printed"
    return $failed
}

tools/prerequisites.sh || exit 1

if [[ $what == short ]]; then
    step "lint" make --no-print-directory lint
    step "tests, with the race detector" fast
    step "tests of the placeholder format" pure
    step "tests against real Kafka and S3" real 15m
else
    export SLUICE_LONG=1
    step "long tests against real Kafka and S3" long
fi

printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
((SECONDS <= budget)) || echo "took ${SECONDS}s, more than the $budget s that this may take on 2 cores"
exit $failed
