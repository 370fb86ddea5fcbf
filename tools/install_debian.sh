#!/usr/bin/env bash
# Installs the named Debian packages that are missing: tools/install_debian.sh PACKAGE…
#
# As root, or through sudo. It changes nothing when everything is there, starts no service,
# and on another system only says what is missing. A mirror that fails, or another apt that holds
# the lock, is tried again.
set -euo pipefail

missing=()
for package in "$@"; do
    status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "This is not Debian. Install by other means what Debian calls: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "As root, run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi

echo "  → installing ${missing[*]} (Debian)" >&2
# RUNLEVEL=1 keeps a package's maintainer scripts from starting its service.
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq
    -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)

again() {
    local pause
    for pause in 5 15 45; do
        "$@" && return
        sleep "$pause"
    done
    "$@"
}

# Lists that are incomplete are fetched again; a source of the machine's own that is broken for good
# is no reason not to try.
again "${apt[@]}" -o APT::Update::Error-Mode=any update || true
again "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null
