// Stands in for cuda_runtime.h where kernels are compiled for the CPU: the words of CUDA C++ that the kernels use, a
// cooperative scheduler for the threads of a block, and device memory that finds mistakes.
//
// A thread of a block is a fiber with a stack of its own. It runs until it has to wait: at a barrier of the block, in an
// exchange within its warp, or because it spins. Which one runs next is a policy, and tests run every kernel under several.
#pragma once
#ifdef __CUDACC__
#error "emu.h replaces the CUDA headers; nvcc brings its own"
#endif
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__ __attribute__((unused))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// No __shared__ and no __constant__: shared memory is one struct per kernel (shared_storage), constants are static constexpr.

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace emu {

using Where = std::source_location;

// ---- what a running kernel sees ----------------------------------------------------------------------------------
struct Thread {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  int linear, warp, lane;
};
extern constinit thread_local Thread* current;  // nullptr: host code is running

void block_barrier(int id, int n_threads, const Where& where);  // n_threads 0: all that have not returned
void yield(const Where& where);                                 // of a thread that spins on memory
// What a thread did before add_release is ordered before what others do after a load_acquire that sees it.
void add_release(uint32_t* counter, uint32_t n);
uint32_t load_acquire(const uint32_t* counter);
void* shared_memory(size_t bytes, const Where& where);  // fails if the launch gave less

// Exchanges within a warp, in which all 32 lanes take part, and arithmetic: meanings.cpp.
void warp_barrier(const Where& where);
uint32_t shuffle_xor(uint32_t value, int mask, const Where& where);
uint32_t shuffle(uint32_t value, int lane, const Where& where);
uint32_t ballot(bool predicate, const Where& where);
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, const Where& where);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Where& where);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Where& where);
void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Where& where);
float float_from_f16(uint16_t bits);
uint16_t f16_from_float(float value);
uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t selector);
float fused(float a, float b, float c);
float exp2_fast(float x);
int dot4(uint32_t a, uint32_t b, int c);

// Asynchronous copies: the destination is poisoned when they are issued and written at the last moment that is allowed.
void async_copy(void* shared, const void* global, int bytes, int zero_fill_to, const Where& where);
void async_commit();
void async_wait(int pending, const Where& where);

// Programmatic dependent launch: before the wait, a kernel may read weights only (checked builds).
void dependency_wait();

// An access that the compiler's instrumentation does not see as one (16-byte loads, ldmatrix): for checks and counters.
enum class Access : uint8_t { read, write };
void note(Access access, const void* address, int bytes, const Where& where);
[[noreturn]] void fail(const char* format, ...);

// ---- what tests choose and read -----------------------------------------------------------------------------------
enum class Order { forward, backward, random };
struct Options {
  Order order = Order::forward;
  uint64_t seed = 1;
  int max_shared_bytes = 99 * 1024;  // of a block, opted in; sm_75 64, sm_80 163, sm_86 and 89 99, sm_90 227 KiB
  bool late_copies = true;           // asynchronous copies read their source when they are waited for, not when they are issued
  bool truncate_sums = false;        // tensor cores round sums towards zero, as the hardware may, instead of to nearest
  size_t device_bytes = size_t{1} << 30;  // of device memory
  long fail_call = -1;                    // number of the runtime call that returns an error, from 0 (tests of error paths)
};
extern Options options;
struct Counters {
  uint64_t launches, blocks, threads, switches, barriers, exchanges, mma, ldmatrix_rows, ldmatrix_phases, async_bytes;
  uint64_t global_read, global_written, shared_requests, shared_cycles, sectors, sectors_ideal;  // checked builds
};
extern Counters counters;
size_t device_bytes();             // allocated now
long runtime_calls();              // so far, as fail_call counts them
bool checked_build();              // whether loads and stores are instrumented
void mark_weights(const void* p);  // an allocation that no kernel writes any more

// ---- launching -----------------------------------------------------------------------------------------------------
struct Shape {
  dim3 grid, block;
  size_t shared = 0;
  bool cooperative = false;  // all blocks are resident: they may wait for each other
  bool dependent = false;    // programmatic dependent launch
};
void run_grid(const char* name, const Shape& shape, void* bound, size_t bound_bytes, void (*call)(void*));

template <typename... P>
struct Bound {
  void (*kernel)(P...);
  std::tuple<P...> args;
  static void call(void* self) { std::apply(static_cast<Bound*>(self)->kernel, static_cast<Bound*>(self)->args); }
};

}  // namespace emu

#define threadIdx (::emu::current->thread)
#define blockIdx (::emu::current->block)
#define blockDim (::emu::current->block_dim)
#define gridDim (::emu::current->grid_dim)

// ---- the runtime's functions, by the names that CUDA gives them: work waits in streams until somebody synchronises --------
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum { cudaStreamNonBlocking = 1, cudaStreamCaptureModeThreadLocal = 1 };
namespace emu {
struct Stream;
struct Event;
struct Graph;
void enqueue(Stream* stream, std::function<void()> work);
}  // namespace emu
using cudaStream_t = emu::Stream*;
using cudaEvent_t = emu::Event*;
using cudaGraph_t = emu::Graph*;
using cudaGraphExec_t = emu::Graph*;
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t* available, size_t* total);
cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaMallocHost(void** p, size_t bytes);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
