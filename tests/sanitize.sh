#!/usr/bin/env bash
# Builds with sanitizers and runs the tests under them: ASan + UBSan over the C++ tests and the Python tests that use tiny
# models, TSan over the thread pool and the engine. Usage: tests/sanitize.sh [asan|tsan|all]. Needs doctest (Debian: doctest-dev) and
# a Python with the package's test extras installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
what=${1:-all}
python=${PYTHON:-python}
work=${SANITIZE_DIR:-$(mktemp -d)}
mkdir -p "$work"

tiny() {
  # -P: the installed package, not the checkout that lacks the extension.
  "$python" -P - "$work/tiny" <<'PY'
import sys
from kimi_vl_cpp.testing import make_tiny_model
print("KIMI_TINY_MODEL=%s KIMI_TINY_MMPROJ=%s" % ((m := make_tiny_model(sys.argv[1], seed=3)).text, m.mmproj))
PY
}

configure() {  # name, sanitizers, extra options
  cmake -S "$root" -B "$work/$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
    -DKIMI_SANITIZE="$2" -DKIMI_TESTS=ON -DPython_EXECUTABLE="$(command -v "$python")" "${@:3}" >/dev/null
}

build() {  # name
  ninja -C "$work/$1" >"$work/$1.log" || { tail -n 40 "$work/$1.log"; return 1; }
  tail -n 1 "$work/$1.log"
}

cpp_tests() {  # name; says of every program how many cases ran
  local program
  for program in "$work/$1/tests/cpp"/test_*; do
    [[ -f $program && -x $program ]] || continue
    printf '%s: ' "$(basename "$program")"
    "$program" --no-intro >"$work/$1.tests" 2>&1 || { cat "$work/$1.tests"; return 1; }
    grep 'test cases:' "$work/$1.tests"
  done
}

variables=$(tiny)  # an assignment of its own, so that a failure ends the script
export $variables
if [[ $what == asan || $what == all ]]; then
  configure asan address,undefined -DKIMI_PYTHON=ON -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
  build asan
  cpp_tests asan
  # The package from the source tree with the instrumented extension.
  mkdir -p "$work/package"
  cp -r "$root/kimi_vl_cpp" "$work/package/"
  rm -f "$work/package/kimi_vl_cpp/"_core*.so
  cp "$work/asan/"_core*.so "$work/package/kimi_vl_cpp/"
  # The tests that reach into the core; those that start processes or limit memory get in the sanitizer's way. Whole models run
  # on the faster instruction sets only: the generic kernels have tests of their own, and take most of
  # the time. Heads of full size read the same lines as small ones, for minutes.
  tests=()
  for name in core/test_{formats,kernels_int8,kernels_float,kernels_bf16,kv_q8,encoders,gguf_reader,gguf_content,sampler,engine,engine_batch} \
    api/test_api chat/test_conversation; do
    tests+=("$root/tests/$name.py")
  done
  (cd "$work" && PYTHONPATH="$work/package" LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
    "$python" -m pytest "${tests[@]}" -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -x -q --timeout 900 -n 2 \
    -k "(kernels or formats or encoders or not generic) and not full")
fi
if [[ $what == tsan || $what == all ]]; then
  # What threads share is the pool's, the step's and the engine's; the kernels share nothing, so the generic ones do.
  configure tsan thread -DKIMI_PYTHON=OFF -DKIMI_GENERIC_ONLY=ON
  build tsan
  TSAN_OPTIONS=halt_on_error=1 cpp_tests tsan
fi
