#!/usr/bin/env bash
# Installs what the tests need where that is one apt-get away, otherwise says
# in one line each what is missing and how to get it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_go() {
    local v
    v=$(go env GOVERSION 2>/dev/null) && [[ $v =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 26))
}
# The compiler, not only the runtime: the tests' Java client is compiled here.
has_jdk() { java -version >/dev/null 2>&1 && [[ $(javac -version 2>&1) =~ ^javac\ ([0-9]+) ]] && ((BASH_REMATCH[1] >= 17)); }
has_maven() { mvn --version >/dev/null 2>&1; }
# Only the race detector needs it; sluice itself is built without cgo.
has_cc() { command -v "$(go env CC)" >/dev/null; }

if ! has_go; then
    echo "missing: Go 1.26 or newer; get it from https://go.dev/dl" >&2
    exit 1
fi

packages=()
has_jdk || packages+=(default-jdk-headless)
has_maven || packages+=(maven)
has_cc || packages+=(gcc libc6-dev)
if ((${#packages[@]})) && [[ $(id -u) == 0 && -f /etc/debian_version ]]; then
    echo "installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -qy --no-install-recommends "${packages[@]}"; } >&2 || true
fi

missing=0
need() {
    "$1" || { echo "missing: $2" >&2; missing=1; }
}
need has_jdk "a JDK, 17 or newer; on Debian: apt-get install default-jdk-headless, elsewhere https://adoptium.net"
need has_maven "Maven; on Debian: apt-get install maven, elsewhere https://maven.apache.org/install.html"
need has_cc "a C compiler, for the race detector; on Debian: apt-get install gcc libc6-dev, on macOS: xcode-select --install"
exit $missing
