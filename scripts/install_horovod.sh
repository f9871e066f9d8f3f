#!/usr/bin/env bash
# install_horovod.sh ENVIRONMENT: builds Horovod for the torch of a virtual environment that has
# requirements-horovod.txt, and lets two processes add numbers with it. Nothing stays behind if that fails.
#
# Horovod's last release is older than the torch that it is built for here, so its CMake files are told
# - the C++ standard that torch compiles its own extensions with (Horovod says C++14);
# - that nothing is to be built for GPUs, though torch may be, and the machine may have a CUDA, which may not fit.
# Processes talk through Gloo, which is part of Horovod; those of `poprun` through MPI, which the Poplar SDK has.
set -euo pipefail

version=0.28.1
sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0

say() {
    echo "install-horovod: $1" >&2
}

fail() {
    say "$1"
    exit 2
}

venv=$(cd "$1" && pwd)
python=$venv/bin/python
compiler=${CXX:-g++}
build=$venv/build-horovod # in the environment: /tmp may be small, or may not run what lies there
source=$build/horovod-$version
log=$venv/horovod.log

torchs_standard() { # the newest C++ standard that torch's builder of extensions names, such as 17
    local builder
    builder=$("$python" -c 'import torch.utils.cpp_extension as it; print(it.__file__)' 2>/dev/null) || return
    sed -n 's/.*-std=c++\([0-9][0-9]\).*/\1/p' "$builder" | sort -n | tail -n 1
}

check_tools() {
    command -v make >/dev/null || fail "building Horovod needs make and found none; install it and call again"
    "$compiler" "-std=c++$standard" -x c++ -fsyntax-only - </dev/null 2>/dev/null ||
        fail "building Horovod needs a C++ compiler that knows C++$standard, and '$compiler' is none; install one (Debian and Ubuntu: g++) or name it: CXX=/path/to/g++"
    [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        fail "building Horovod needs Python's header Python.h; install it (Debian and Ubuntu: python3-dev) and call again"
}

fetch() {
    rm -rf "$build"
    mkdir "$build"
    echo "horovod==$version --hash=sha256:$sha256" >"$build/source.txt"
    "$python" -m pip download --no-deps --no-binary horovod --no-build-isolation -d "$build" -r "$build/source.txt"
    tar -xzf "$source.tar.gz" -C "$build"
}

adapt() {
    sed -i.orig "s/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD $standard/" "$source"/{,horovod/torch/}CMakeLists.txt
    sed -i.orig 's/torch.version.[a-z]* is not None/False/' "$source/cmake/Modules/FindPytorch.cmake"
}

compile() { # into a wheel
    # Gloo counts on other headers to bring <cstdint>, which those of GCC 13 and later do not.
    export CXX=$compiler CXXFLAGS="${CXXFLAGS:-} -include cstdint" HOROVOD_CMAKE=$venv/bin/cmake
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1
    if [ -n "${POPLAR_SDK_ENABLED:-}" ]; then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi
    MAKEFLAGS=-j$("$python" -c 'import os; print(min(os.cpu_count(), 4))') # each takes more than 1 GB of memory
    export MAKEFLAGS
    "$python" -m pip wheel --no-deps --no-build-isolation --no-cache-dir -w "$build" "$source"
}

install() {
    "$python" -m pip install --no-deps --no-index --force-reinstall "$build"/horovod-*.whl
}

check() { # two processes: 1 + 2
    "$python" -m horovod.runner.launch --gloo -np 2 -H localhost:2 "$python" -c '
import horovod.torch as hvd
import torch
hvd.init()
total = hvd.allreduce(torch.tensor([1.0 + hvd.rank()]), op=hvd.Sum)
assert hvd.size() == 2 and total.item() == 3.0, total'
}

undo() {
    exec 2>&3
    "$python" -m pip uninstall --yes --quiet horovod 2>/dev/null || true
    rm -rf "$build"
    tail -n 20 "$log" >&2
    fail "building Horovod $version failed, see above and $log"
}

cd "$venv" # where nothing is called horovod
standard=$(torchs_standard) || fail "Horovod is built for a torch, and $venv has none"
check_tools
say "building Horovod $version for $venv; this takes minutes"
exec 3>&2 >"$log" 2>&1
trap undo EXIT
fetch
adapt
compile
install
check
trap - EXIT
exec 2>&3
rm -rf "$build" "$log"
say "built Horovod $version, and two processes have added numbers with it"
