#!/bin/sh
# Installs what the project needs: missing system packages, then .venv with pinned packages.
# Does nothing when pyproject.toml, constraints.txt and the Python version are those of last time.
set -eu
cd "$(dirname "$0")/.."
unset MAKEFLAGS MFLAGS MAKELEVEL # the compiler run by pip is no part of the calling make

PYTHON=${PYTHON:-python3}
LOG=.cache/pip.log
# For FFCV's build; the last one holds the data of the quick suite.
PACKAGES="python3-venv python3-dev gcc g++ pkg-config libopencv-dev libturbojpeg0-dev
 dataset-fashion-mnist"

# Continuous integration tests the report in a browser; elsewhere that test is skipped without one.
if [ -n "${CI:-}" ] && ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null
then
    PACKAGES="$PACKAGES chromium"
fi

say() { echo "set-up: $*"; }
die() { echo "error: $*" >&2; exit 2; }

stamp() {
    { cat pyproject.toml constraints.txt; "$PYTHON" -VV; pwd; } 2>&1 | sha256sum
}

is_installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

install_system_packages() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        if command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then
            say "no apt-get here; pkg-config finds OpenCV and TurboJPEG"
            return
        fi
        die "apt-get is not here: install a C++ compiler, pkg-config, the Python headers," \
            "OpenCV 4 and TurboJPEG (libjpeg-turbo) with their headers by your package manager," \
            "so that 'pkg-config --exists opencv4 libturbojpeg' succeeds, and run this again"
    fi
    missing=""
    for package in $PACKAGES; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "root or sudo is needed to install these missing Debian packages:$missing"
        sudo="sudo"
    fi
    say "installing system packages:$missing"
    # shellcheck disable=SC2086  # lists of words
    { $sudo apt-get update -qq &&
        $sudo env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends $missing >/dev/null; } ||
        die "apt-get could not install:$missing (its own message is above)"
}

check_python() {
    command -v "$PYTHON" >/dev/null || die "$PYTHON is not found: Python 3.11 or newer is needed"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$PYTHON" -V) is too old: Python 3.11 or newer is needed (name it by PYTHON=...)"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$("$PYTHON" -V) has no venv with pip: install them or name another one by PYTHON=..."
}

make_environment() {
    # Kept when it is of this Python and place, so that a changed pin is a quick update.
    if [ ! -x .venv/bin/python ] || [ "$(.venv/bin/python -VV)" != "$("$PYTHON" -VV)" ] ||
        ! grep -qsF "$(pwd)/.venv" .venv/bin/pip; then
        say "making .venv with $("$PYTHON" -V)"
        [ ! -L .venv ] || die ".venv is a link to $(readlink .venv), which would be emptied: delete the link"
        "$PYTHON" -m venv --clear .venv || die "$PYTHON could not make .venv (message above)"
    fi
    rm -f .venv/stamp
    mkdir -p .cache
    say "installing the pinned packages: a few minutes (log: $LOG)"
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
        -c constraints.txt -e '.[test]' >"$LOG" 2>&1 &
    pip=$!
    trap 'kill "$pip" 2>/dev/null; exit 130' INT TERM # sh starts it deaf to Ctrl-C
    seconds=0
    while kill -0 "$pip" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 20)) -ne 0 ] || say "$seconds s: $(tail -n 1 "$LOG" | cut -c 1-80)"
    done
    if ! wait "$pip"; then
        tail -n 15 "$LOG" >&2
        # the first is FFCV's setup.py, before pip would name the package
        if grep -qi 'could not find required package\|failed.*ffcv' "$LOG"; then
            die "FFCV did not build: it needs a C++ compiler, the Python headers, OpenCV 4 and" \
                "TurboJPEG (see $LOG)"
        fi
        die "pip could not install the pinned packages (see $LOG)"
    fi
    trap - INT TERM
    # Not everywhere is there an onnxruntime: without it the export to ONNX is left out, and its tests.
    .venv/bin/python tools/peers.py onnx
}

if [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$(stamp)" ]; then
    exit 0
fi
install_system_packages
check_python
make_environment
stamp >.venv/stamp
say "done"
