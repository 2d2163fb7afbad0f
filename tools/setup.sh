#!/bin/sh
# Installs what the project needs: missing system libraries, then .venv with pinned packages.
# Does nothing when pyproject.toml, constraints.txt and the Python version are those of last time.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
# FFCV's build: compiler, Python headers, OpenCV, TurboJPEG; the last one is the quick suite's data.
PACKAGES="python3 python3-venv python3-dev gcc g++ pkg-config libopencv-dev libturbojpeg0-dev
 libgl1 libglib2.0-0 dataset-fashion-mnist"

say() { echo "set-up: $*"; }
die() { echo "error: $*" >&2; exit 2; }

stamp_now() {
    { cat pyproject.toml constraints.txt; "$PYTHON" -VV; pwd; } 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

is_installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

system_packages() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        if command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then
            say "no apt here; OpenCV and TurboJPEG are found by pkg-config"
            return
        fi
        die "apt-get is not here: with your package manager, install a C++ compiler, pkg-config," \
            "the Python headers, OpenCV 4 and libjpeg-turbo (TurboJPEG) with their headers, so" \
            "that 'pkg-config --exists opencv4 libturbojpeg' succeeds, then run this again"
    fi
    missing=""
    for package in $PACKAGES; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "these Debian packages are missing and there is neither root nor sudo here:$missing"
        sudo="sudo"
    fi
    say "installing system packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # both are lists of words
    { $sudo apt-get update -qq &&
        $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null; } ||
        die "apt-get could not install:$missing (its message is above)"
}

check_python() {
    command -v "$PYTHON" >/dev/null || die "$PYTHON is not found: Python 3.11 or newer is needed"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$PYTHON" -V) is too old: Python 3.11 or newer is needed; name it with PYTHON=..."
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$("$PYTHON" -V) has no venv and ensurepip: install them or name another PYTHON=..."
}

packages() {
    say "making .venv with $("$PYTHON" -V) (a few minutes)"
    rm -rf .venv
    "$PYTHON" -m venv .venv
    mkdir -p .cache
    say "installing the pinned packages (log: .cache/pip.log)"
    .venv/bin/python -m pip install --disable-pip-version-check --no-input \
        -c constraints.txt -e '.[test]' >.cache/pip.log 2>&1 || {
        tail -n 20 .cache/pip.log >&2
        if grep -qiE 'failed (building wheel for|to build).*ffcv' .cache/pip.log; then
            die "FFCV did not build: OpenCV 4, TurboJPEG and the Python headers are needed" \
                "(see .cache/pip.log)"
        fi
        die "pip could not install the packages: see .cache/pip.log"
    }
}

if [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$(stamp_now)" ]; then
    exit 0
fi
system_packages
check_python
packages
stamp_now >.venv/stamp
say "done"
