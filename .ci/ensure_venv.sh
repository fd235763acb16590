#!/usr/bin/env bash
# Make the virtual environment VENV with the first Python >= 3.11 found.
# Usage: ensure_venv.sh VENV [PYTHON]
set -euo pipefail

venv=$1
wanted=${2:-}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Packages of the system's Python that Debian leaves out are installed only by root.
has_venv() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

if [ -x "$venv/bin/python" ] && new_enough "$venv/bin/python" \
    && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

python=
for candidate in ${wanted:-python3.13 python3.12 python3.11 python3}; do
    # A name on PATH may be a shim of a version manager that does not run, so it is tried.
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: no Python >= 3.11 (tried ${wanted:-python3.13 python3.12 python3.11 python3});" \
        "install one, or say which: make PYTHON=/path/to/python3.12" >&2
    exit 1
fi

if ! has_venv "$python"; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing $package"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >/dev/null
        apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    else
        echo "setup: $python has no venv module; install $package and run make again" >&2
        exit 1
    fi
fi

echo "setup: creating $venv with $("$python" --version)"
rm -rf "$venv"
"$python" -m venv "$venv"
