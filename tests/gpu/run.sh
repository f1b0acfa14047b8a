#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: builds libkimi_cuda.so, runs the tests of tests/cuda on it, then compute-sanitizer
# where there is one, and prints what came of each step. Needs nvcc, cmake, ninja and a Python with the package and its test extras.
#   tests/gpu/run.sh [FOLDER]    logs and the library go to FOLDER
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
out=$(cd "$folder" && pwd)
python=${PYTHON:-python}
failed=0

# step NAME SECONDS COMMAND...: runs it within its time, keeps its output, prints a line.
step() {
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    printf '%-12s passed  %4d s   %s\n' "$name" $((SECONDS - started)) "$(tail -n 1 "$out/$name.log")"
  else
    printf '%-12s FAILED  %4d s   see %s\n' "$name" $((SECONDS - started)) "$out/$name.log"
    tail -n 15 "$out/$name.log"
    failed=1
    return 1
  fi
}

build() {
  cmake -S "$root" -B "$out/build" -G Ninja -DKIMI_PYTHON=OFF -DKIMI_CUDA=ON -DKIMI_GENERIC_ONLY=ON \
    -DKIMI_CUDA_ARCHITECTURES="${ARCHITECTURES:-80;90a}" && ninja -C "$out/build" kimi_cuda
}
export -f build
export root out

step card 20 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader || exit 1
step build 400 bash -c build || exit 1
library=$out/build/csrc/backend/cuda/libkimi_cuda.so
tests=("$python" -m pytest -q "$root/tests/cuda" --cuda-library "$library" -p no:cacheprovider)
step models 240 "${tests[@]}"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do
    step "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all "${tests[@]}" -k legacy
  done
else
  echo "compute-sanitizer is not installed: left out"
fi
exit $failed
