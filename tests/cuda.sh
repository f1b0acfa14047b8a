#!/usr/bin/env bash
# Builds the CUDA backend for the emulator and runs its tests (docs/cuda.md): operations, and whole models through the package; no GPU
# and no nvcc is needed. Needs an x86-64 machine with AVX2, doctest (Debian: doctest-dev) and a Python with the package and its test extras.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
work=${CUDA_TEST_DIR:-$(mktemp -d)}

cmake -S "$root" -B "$work" -G Ninja -DKIMI_PYTHON=OFF -DKIMI_CUDA_EMULATOR=ON -DKIMI_GENERIC_ONLY=ON >/dev/null
ninja -C "$work" cuda_emulated >"$work.log" || { tail -n 40 "$work.log"; exit 1; }
ctest --test-dir "$work" --output-on-failure --no-tests=error
library=$work/tests/cuda_emulator/libkimi_cuda_emulated
"$python" -m pytest -q "$root/tests/cuda" --cuda-library "${library}_fast.so"
# Every access of a small model checked.
"$python" -m pytest -q "$root/tests/cuda" --cuda-library "${library}_checked.so" -k "legacy or first"
