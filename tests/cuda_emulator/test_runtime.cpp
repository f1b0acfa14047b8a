// What the emulator knows of streams, graphs, dependent launches, resident grids and host memory. Each case runs in a child,
// beside what it has to end in.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cuda/primitives.h"

using namespace kimi::cuda;

namespace {

__global__ void add_at(const int* position, const float* table, float* out) {
  dependency_wait();
  out[threadIdx.x] += table[*position * 32 + static_cast<int>(threadIdx.x)];
}
__global__ void advance(int* position) {
  dependency_wait();
  if (threadIdx.x == 0) ++*position;
}
__global__ void too_early(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x]; }  // no dependency_wait
__global__ void copy(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x]; }
__global__ void use_registers_of_host(const float* x, float* out) { out[threadIdx.x] = x[0]; }

struct Halves {
  float from_producers[64];
  float other[64];
};
// Warps 0 and 1 make, warps 2 and 3 take, through named barriers: 1 says full, 2 says empty.
template <bool kForgets>
__global__ void pipeline(float* out, int n) {
  auto& shared = shared_storage<Halves>();
  const int t = static_cast<int>(threadIdx.x) % 64;
  float sum = 0;
  for (int i = 0; i < n; ++i) {
    if (warp_id() < 2) {
      shared.from_producers[t] = static_cast<float>(i * 64 + t);
      named_sync(1, 128);
      named_sync(2, 128);
    } else {
      named_sync(1, 128);
      sum += shared.from_producers[63 - t];
      if (!kForgets || i + 1 < n) named_sync(2, 128);
    }
  }
  if (warp_id() >= 2) out[t] = sum;
}

// All blocks of a resident grid meet: the pattern of a kernel that runs a whole step.
__global__ void meet(uint32_t* arrived, float* x, float* out) {
  if (threadIdx.x == 0) x[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
  block_sync();
  if (threadIdx.x == 0) {
    atomic_add_release(arrived, 1);
    while (load_acquire(arrived) < gridDim.x) spin();
  }
  block_sync();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += x[b];
    out[blockIdx.x] = sum;
  }
}

struct Two {
  float values[32];
};
template <bool kSync>
__global__ void neighbours(float* out) {  // within a warp, through shared memory
  auto& shared = shared_storage<Two>();
  shared.values[lane_id()] = static_cast<float>(lane_id());
  if (kSync) warp_sync();
  out[lane_id()] = shared.values[(lane_id() + 1) % 32];
}
__global__ void diverged(float* out) {
  if (lane_id() < 16) out[lane_id()] = warp_sum(1.0f);
}

cudaStream_t stream;
template <typename T>
T* device(size_t n) {
  void* p = nullptr;
  if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) std::_Exit(9);
  return static_cast<T*>(p);
}
template <typename T>
T* device_of(const std::vector<T>& host) {
  T* p = device<T>(host.size());
  cudaMemcpyAsync(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
  cudaStreamSynchronize(stream);
  return p;
}
Launch one_warp(bool dependent = false) {
  Launch how{dim3(1), dim3(32), sizeof(Two), stream};
  how.dependent = dependent;
  return how;
}
float first(const float* p) {
  float x;
  cudaMemcpyAsync(&x, p, 4, cudaMemcpyDeviceToHost, stream);
  cudaStreamSynchronize(stream);
  return x;
}
const std::vector<float> kZeros(32, 0.0f), kCount = [] {
  std::vector<float> v(128);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i);
  return v;
}();

// 0: right; 1: a wrong result; 3: the emulator reported what is wrong
int graph_replays_with_positions_in_memory() {
  int* position = device_of(std::vector<int>{0});
  float *table = device_of(kCount), *out = device_of(kZeros);
  emu::mark_weights(table);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  launch("add_at", add_at, one_warp(true), position, table, out);
  launch("advance", advance, one_warp(true), position);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph);
  for (int i = 0; i < 4; ++i) cudaGraphLaunch(exec, stream);
  const float got = first(out);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return got == 0 + 32 + 64 + 96 ? 0 : 1;
}
int host_reads_before_synchronising() {
  float *x = device_of(kCount), *out = device<float>(32), host = -1;
  launch("copy", copy, one_warp(), x, out);
  cudaMemcpyAsync(&host, out, 4, cudaMemcpyDeviceToHost, stream);
  return host == 0 ? 0 : 1;  // still -1: nothing has run
}
int host_touches_device_memory() { return *device_of(kCount) == 0 ? 0 : 1; }
int kernel_gets_a_host_pointer() {
  float* out = device<float>(32);
  launch("host pointer", use_registers_of_host, one_warp(), kCount.data(), out);
  return first(out) == 0 ? 0 : 1;
}
int dependent_kernel_does_not_wait() {
  float *x = device_of(kCount), *out = device<float>(32);
  launch("too early", too_early, one_warp(true), x, out);
  return first(out) == 0 ? 0 : 1;
}
int use_after_free() {
  float *x = device_of(kCount), *out = device<float>(32);
  cudaFree(x);
  launch("copy", copy, one_warp(), x, out);
  return first(out) == 0 ? 0 : 1;
}
template <bool kForgets>
int producers_and_consumers() {
  float* out = device<float>(64);
  launch("pipeline", pipeline<kForgets>, Launch{dim3(1), dim3(128), sizeof(Halves), stream}, out, 3);
  return first(out) == 63 + 127 + 191 ? 0 : 1;
}
template <bool kResident>
int grid_meets() {
  uint32_t* arrived = device_of(std::vector<uint32_t>{0});
  float *x = device<float>(8), *out = device<float>(8);
  Launch how{dim3(8), dim3(64), 0, stream};
  how.cooperative = kResident;
  launch("meet", meet, how, arrived, x, out);
  return first(out) == 36 ? 0 : 1;
}
template <bool kSync>
int lanes_share() {
  float* out = device<float>(32);
  launch("neighbours", neighbours<kSync>, one_warp(), out);
  return first(out) == 1 ? 0 : 1;
}
int half_a_warp_exchanges() {
  float* out = device<float>(32);
  launch("diverged", diverged, one_warp(), out);
  return first(out) == 16 ? 0 : 1;
}
int too_little_shared_memory() {
  float* out = device<float>(64);
  launch("pipeline", pipeline<false>, Launch{dim3(1), dim3(128), 256, stream}, out, 1);
  return first(out) == 63 ? 0 : 1;
}
int a_call_fails() {  // the error arrives at the caller, whichever call it is
  for (long n = 0; n < 6; ++n) {
    emu::options.fail_call = n;
    cudaStream_t s = nullptr;
    void* p = nullptr;
    int errors = 0;
    errors += cudaStreamCreateWithFlags(&s, 0) != cudaSuccess;
    errors += cudaMalloc(&p, 64) != cudaSuccess;
    if (p) errors += cudaMemsetAsync(p, 0, 64, s) != cudaSuccess;
    errors += cudaStreamSynchronize(s) != cudaSuccess;
    cudaFree(p);
    cudaStreamDestroy(s);
    emu::options.fail_call = -1;
    (void)errors;
  }
  return 0;
}

struct Case {
  const char* name;
  int (*run)();
  int fast, checked;
};
constexpr Case kCases[] = {
    {"a graph replays with its position in memory", graph_replays_with_positions_in_memory, 0, 0},
    {"producers and consumers, named barriers", producers_and_consumers<false>, 0, 0},
    {"a resident grid meets", grid_meets<true>, 0, 0},
    {"lanes share through shared memory", lanes_share<true>, 0, 0},
    {"any runtime call may fail", a_call_fails, 0, 0},
    {"host reads before synchronising", host_reads_before_synchronising, 1, 1},
    {"host touches device memory", host_touches_device_memory, 3, 3},
    {"kernel gets a host pointer", kernel_gets_a_host_pointer, 0, 3},
    {"dependent kernel does not wait", dependent_kernel_does_not_wait, 0, 3},
    {"use after free", use_after_free, 3, 3},
    {"consumers forget the last barrier", producers_and_consumers<true>, 3, 3},
    {"a grid meets that is not resident", grid_meets<false>, 3, 3},
    {"lanes share without warp_sync", lanes_share<false>, 1, 3},
    {"half a warp exchanges", half_a_warp_exchanges, 3, 3},
    {"too little shared memory", too_little_shared_memory, 3, 3},
};

}  // namespace

TEST_CASE("every use of the runtime ends as it should") {
  for (const Case& c : kCases) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      std::freopen("/dev/null", "w", stderr);
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      std::_Exit(c.run());
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CAPTURE(c.name);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == (emu::checked_build() ? c.checked : c.fast));
  }
}
