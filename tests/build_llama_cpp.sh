#!/bin/sh
# Builds llama.cpp's command-line tools for this processor, as a peer to test and measure against.
# They come from the source package of llama-cpp-python; nothing of them is part of pellucid.
#
#   tests/build_llama_cpp.sh [TARGET ...]      all tools when no target is named
#
# The tools end in .cache/peers/llama.cpp/bin. LLAMA_CPP_SOURCE names a source tree that is already unpacked.
set -eu
cd "$(dirname "$0")/.."
version=0.3.36
peers=.cache/peers
build=$peers/llama.cpp
source=${LLAMA_CPP_SOURCE:-$peers/llama_cpp_python-$version/vendor/llama.cpp}
tools="llama-tokenize llama-completion llama-bench llama-batched-bench llama-server"

if [ ! -f "$source/CMakeLists.txt" ]; then
    mkdir -p "$peers"
    echo "downloading the source of llama-cpp-python $version"
    "${PYTHON:-.venv/bin/python}" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
        --dest "$peers" "llama-cpp-python==$version"
    tar -xzf "$peers/llama_cpp_python-$version.tar.gz" -C "$peers"
fi

if [ ! -f "$build/build.ninja" ]; then
    cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
fi
# shellcheck disable=SC2086  # the words of $tools are meant to be apart
cmake --build "$build" --parallel 2 --target ${*:-$tools}
ls "$build/bin"
