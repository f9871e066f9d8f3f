#!/usr/bin/env bash
# One command for everything: makes an environment on first use, then trains, evaluates or tests.
set -euo pipefail
caller=$0
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<END
$caller PRESET [key=value ...]    train; settings are changed by section.key=value, e.g. schedule.lr=0.01
$caller evaluate SOURCE           score a run (runs/NAME) or weights on the validation images
$caller predict SOURCE IMAGE ...  what a run or weights take images for
$caller report runs/NAME          make a page of a run, finished or not
$caller plan PRESET               what would sit on which IPU
$caller inspect-data PRESET       draw what the model will see, and time the loader
$caller convert FILE DST --to FORMAT  write weights in another format
$caller pack SRC DST              put the images of a data set into a few large files
$caller verify-pack DST           compare a pack with its checksums
$caller presets | models          list them
$caller install-horovod           build Horovod, which training over several processes needs
$caller test [pytest options]     run the tests

Presets:
END
    local file
    for file in configs/*.yml; do
        printf '  %-36s %s\n' "$(basename "$file" .yml)" "$(sed -n '1s/^# *//p' "$file")"
    done
    cat <<END

The first call installs what is needed into .venv. Environment variables: PYTHON (interpreter to make
it with), VENV (another folder for it), HVD (train or evaluate in several processes: HVD=2 in 2 of this
host, HVD=host1:4,host2:4 with HVD_INTERFACE=eth0 in 4 of each). Relative paths start at $PWD.
END
}

fail() {
    echo "run.sh: $1" >&2
    exit 2
}

is_supported() { # can this interpreter make an environment for us?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 8) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.8 to 3.13 with its venv module"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3.10 python3.9 python3.8 python3; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "found no Python 3.8 to 3.13 with its venv module; install one or name it: PYTHON=/path/to/python $caller"
}

# In an enabled Poplar SDK with an active environment that has poptorch, that environment is the one to use.
has_sdk() {
    [ -z "${VENV:-}" ] && [ -n "${POPLAR_SDK_ENABLED:-}" ] || return 1
    if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c \
        'import importlib.util, sys; sys.exit(importlib.util.find_spec("poptorch") is None)'; then
        return 0
    fi
    echo "run.sh: the Poplar SDK is enabled, but no active environment has poptorch;" \
        "going on without IPUs (to use them, install the SDK's poptorch wheel and activate its environment)" >&2
    return 1
}

# Installs a requirements file, unless a finished install left a copy of exactly this file as its stamp.
install() {
    local stamp="$venv/installed-$1" options=()
    cmp -s "$1" "$stamp" && return
    if $sdk; then # poptorch works with no torch but its own
        "$venv/bin/python" -m pip list --format=freeze | grep -iE '^(torch|numpy)==' >"$venv/kept-packages.txt" || true
        options=(--constraint "$venv/kept-packages.txt")
    fi
    echo "run.sh: installing $1 into $venv" >&2
    "$venv/bin/python" -m pip install --disable-pip-version-check -r "$1" ${options[@]+"${options[@]}"} >&2 ||
        fail "installing $1 failed, see above; check the network connection and call again"
    cp "$1" "$stamp"
}

make_environment() {
    local python
    python=$(find_python)
    if [ -x "$venv/bin/python" ] && [ "$(version_of "$venv/bin/python")" != "$(version_of "$python")" ]; then
        fail "$venv holds another Python than $python; remove it, or name another folder: VENV=..."
    fi
    "$python" -m venv "$venv" || fail "$python could not make the environment $venv, see above"
}

version_of() {
    "$1" -c 'import sys; print(sys.version_info[:2])'
}

prepare() { # sets $venv and installs the given requirements, if they are not there yet
    if has_sdk; then
        sdk=true venv=$VIRTUAL_ENV
        echo "run.sh: using the Poplar SDK's environment $venv" >&2
        install requirements-sdk.txt
    else
        sdk=false venv=${VENV:-.venv}
        if [ -n "${PYTHON:-}" ] || [ ! -x "$venv/bin/python" ] || [ ! -e "$venv/installed-requirements.txt" ]; then
            make_environment
        fi
        install requirements.txt
    fi
    if [ "$1" = test ]; then
        install requirements-test.txt
    fi
}

refuse_hvd() { # for what one process does
    [ -z "${HVD:-}" ] || fail "HVD=$HVD is for train and evaluate, not for $1"
}

start() { # a command of the package; in several processes, if HVD says so
    local module=ipu_vit
    if [ -n "${HVD:-}" ]; then
        module=ipu_vit.launch
    fi
    exec "$venv/bin/python" -m "$module" "$@"
}

# Large tensors come and go in every update. By default malloc returns their memory to the system each time
# and pays page faults for it again, 11 to 13 % of the time of a ViT-B/16 update on a CPU; so it keeps it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456}

case ${1:-} in
"" | -h | --help | help)
    usage
    ;;
test)
    refuse_hvd "$1"
    prepare test
    exec "$venv/bin/python" -m pytest "${@:2}"
    ;;
install-horovod)
    refuse_hvd "$1"
    prepare run
    if "$venv/bin/python" -c 'import horovod.torch' 2>/dev/null; then
        echo "run.sh: $venv has a Horovod that fits its torch already" >&2
        exit
    fi
    install requirements-horovod.txt
    exec scripts/install_horovod.sh "$venv"
    ;;
train | evaluate | predict | report | plan | inspect-data | convert | pack | verify-pack | presets | models)
    prepare run
    start "$@"
    ;;
*)
    # Before anything is installed: is there such a preset?
    if [ ! -f "configs/${1%.yml}.yml" ] && [ ! -f "$1" ]; then
        fail "there is no preset or command '$1'; '$caller' alone lists them"
    fi
    prepare run
    start train "$@"
    ;;
esac
