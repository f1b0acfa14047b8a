#!/usr/bin/env bash
# Builds the CUDA kernels for the emulator and runs their tests (docs/cuda.md); no GPU and no nvcc is needed. Needs an x86-64 machine with
# AVX2 and doctest (Debian: doctest-dev).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${CUDA_TEST_DIR:-$(mktemp -d)}

cmake -S "$root" -B "$work" -G Ninja -DKIMI_PYTHON=OFF -DKIMI_CUDA_EMULATOR=ON -DKIMI_GENERIC_ONLY=ON >/dev/null
ninja -C "$work" cuda_emulated >"$work.log" || { tail -n 40 "$work.log"; exit 1; }
ctest --test-dir "$work" --output-on-failure --no-tests=error
