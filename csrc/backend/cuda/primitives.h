// The vocabulary of the kernels: everything of CUDA that they use beyond plain C++ stands here, once as instructions and
// once as what these instructions mean. Kernels contain no inline assembly, no warp intrinsics and no __shared__.
//
// All lanes of a warp take part in every exchange, and all threads of a block in block_sync.
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>
#define KIMI_WHERE
#define KIMI_WHERE1
#define KIMI_HERE
#define KIMI_PTX(minimum) (__CUDA_ARCH__ >= (minimum))
#define KIMI_UNROLL _Pragma("unroll")
#define KIMI_ROLLED _Pragma("unroll 1")
#else
#include <cuda_emulator/emu.h>

#include <cmath>
#include <cstring>
// Where a primitive was called, for the emulator's messages.
#define KIMI_WHERE1 ::emu::Where where = ::emu::Where::current()
#define KIMI_WHERE , KIMI_WHERE1
#define KIMI_HERE , where
#define KIMI_PTX(minimum) 0
#define KIMI_UNROLL
#define KIMI_ROLLED
#endif

namespace kimi::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }  // blocks are one-dimensional
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

// ---- numbers ---------------------------------------------------------------------------------------------------------
__device__ __forceinline__ float float_from_bits(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}
__device__ __forceinline__ uint32_t bits_of(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
#endif
}

__device__ __forceinline__ float float_from_bf16(uint32_t bits) { return float_from_bits(bits << 16); }

// Two bf16, the first in the low half; round to nearest even. Numbers are finite.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__) && KIMI_PTX(800)
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  const uint32_t a = bits_of(low), b = bits_of(high);
  return ((a + 0x7fff + ((a >> 16) & 1)) >> 16) | ((b + 0x7fff + ((b >> 16) & 1)) & 0xffff0000u);
#endif
}

__device__ __forceinline__ float float_from_f16(uint16_t bits) {
#ifdef __CUDACC__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return emu::float_from_f16(bits);
#endif
}

// Round to nearest even.
__device__ __forceinline__ uint16_t f16_from_float(float value) {
#ifdef __CUDACC__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return emu::f16_from_float(value);
#endif
}

__device__ __forceinline__ float square_root(float x) {
#ifdef __CUDACC__
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

// The error function to about 2 ulp.
__device__ __forceinline__ float error_function(float x) {
#ifdef __CUDACC__
  return erff(x);
#else
  return std::erf(x);
#endif
}

// 2^x to about 2 ulp
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
#else
  return emu::exp2_fast(x);
#endif
}

// a b + c, rounded once. Compilers do not contract on their own (-fmad=false), so that a kernel gives the same bits everywhere.
__device__ __forceinline__ float fused(float a, float b, float c) {
#ifdef __CUDACC__
  return __fmaf_rn(a, b, c);
#else
  return emu::fused(a, b, c);
#endif
}

// c + the sum of four products of signed bytes
__device__ __forceinline__ int dot4(uint32_t a, uint32_t b, int c) {
#ifdef __CUDACC__
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
#else
  return emu::dot4(a, b, c);
#endif
}

// Byte i of the result is byte s of (b a), eight bytes of which a holds the first four; s: bits 4 i .. 4 i + 2 of the selector.
__device__ __forceinline__ uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef __CUDACC__
  return __byte_perm(a, b, selector & 0x7777);
#else
  return emu::choose_bytes(a, b, selector);
#endif
}

// ---- memory ------------------------------------------------------------------------------------------------------------
// The block's shared memory as one struct.
template <typename T>
__device__ __forceinline__ T& shared_storage(KIMI_WHERE1) {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char kimi_shared_memory[];
  return *reinterpret_cast<T*>(kimi_shared_memory);
#else
  return *static_cast<T*>(emu::shared_memory(sizeof(T), where));
#endif
}

// 16 bytes of weights, which are read once: past the first cache.
__device__ __forceinline__ uint4 load_weights(const void* p KIMI_WHERE) {
#ifdef __CUDACC__
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#else
  emu::note(emu::Access::read, p, 16, where);
  uint4 v;
  std::memcpy(&v, p, 16);
  return v;
#endif
}

// Copies 16 bytes into shared memory, or, of fewer than 16 `bytes`, these and zeros.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes KIMI_WHERE) {
#ifdef __CUDACC__
#if KIMI_PTX(800)
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
  *static_cast<uint4*>(shared) = bytes ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
#else
  emu::async_copy(shared, global, bytes, 16, where);
#endif
}
__device__ __forceinline__ void copy_async_commit() {
#ifdef __CUDACC__
#if KIMI_PTX(800)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
#else
  emu::async_commit();
#endif
}
// Waits until at most `pending` groups of this thread are under way. Others see the bytes after a barrier.
template <int pending>
__device__ __forceinline__ void copy_async_wait(KIMI_WHERE1) {
#ifdef __CUDACC__
#if KIMI_PTX(800)
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
#else
  emu::async_wait(pending, where);
#endif
}

// ---- threads that wait for each other -----------------------------------------------------------------------------------
__device__ __forceinline__ void block_sync(KIMI_WHERE1) {
#ifdef __CUDACC__
  __syncthreads();
#else
  emu::block_barrier(0, 0, where);
#endif
}
// Of `n_threads` threads, whole warps, that name the same barrier 1..15.
__device__ __forceinline__ void named_sync(int id, int n_threads KIMI_WHERE) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
#else
  emu::block_barrier(id, n_threads, where);
#endif
}
__device__ __forceinline__ void warp_sync(KIMI_WHERE1) {
#ifdef __CUDACC__
  __syncwarp();
#else
  emu::warp_barrier(where);
#endif
}
// Waits for the kernel before this one in the stream. Until then a kernel may touch weights only.
__device__ __forceinline__ void dependency_wait() {
#ifdef __CUDACC__
#if KIMI_PTX(900)
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  emu::dependency_wait();
#endif
}
// Lets the next kernel of the stream begin.
__device__ __forceinline__ void dependents_go() {
#if defined(__CUDACC__) && KIMI_PTX(900)
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Counters in device memory, through which the blocks of a resident grid wait for each other.
__device__ __forceinline__ void atomic_add_release(uint32_t* counter, uint32_t n) {
#ifdef __CUDACC__
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(n) : "memory");
#else
  emu::add_release(counter, n);
#endif
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* counter) {
#ifdef __CUDACC__
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
#else
  return emu::load_acquire(counter);
#endif
}
__device__ __forceinline__ void spin(KIMI_WHERE1) {
#ifndef __CUDACC__
  emu::yield(where);
#endif
}

// ---- exchanges within a warp ----------------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int mask KIMI_WHERE) {
#ifdef __CUDACC__
  return __shfl_xor_sync(0xffffffffu, value, mask);
#else
  return emu::shuffle_xor(value, mask, where);
#endif
}
__device__ __forceinline__ float shuffle_xor(float value, int mask KIMI_WHERE) {
  return float_from_bits(shuffle_xor(bits_of(value), mask KIMI_HERE));
}
__device__ __forceinline__ uint32_t shuffle(uint32_t value, int lane KIMI_WHERE) {
#ifdef __CUDACC__
  return __shfl_sync(0xffffffffu, value, lane);
#else
  return emu::shuffle(value, lane, where);
#endif
}
__device__ __forceinline__ uint32_t ballot(bool predicate KIMI_WHERE) {
#ifdef __CUDACC__
  return __ballot_sync(0xffffffffu, predicate);
#else
  return emu::ballot(predicate, where);
#endif
}
// The sum of groups of `lanes` lanes, in a fixed order.
template <int lanes = kWarp>
__device__ __forceinline__ float warp_sum(float value KIMI_WHERE) {
  KIMI_UNROLL
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask KIMI_HERE);
  return value;
}
template <int lanes = kWarp>
__device__ __forceinline__ float warp_max(float value KIMI_WHERE) {
  KIMI_UNROLL
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const float other = shuffle_xor(value, mask KIMI_HERE);
    value = value > other ? value : other;
  }
  return value;
}

// ---- matrices in fragments (PTX ISA, "Matrix Fragments for mma") --------------------------------------------------------
// Four matrices of 8 rows of 16 bytes: lane i brings the address of row i % 8 of matrix i / 8; lane l gets word l % 4 of row
// l / 4 of each. Transposed (16-bit elements): elements 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row KIMI_WHERE) {
#ifdef __CUDACC__
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#else
  emu::load_matrices(r, row, transposed, where);
#endif
}

// d += a b for a [16, 16] row-major and b [16, 8] column-major: bf16 or f16 with sums in float. bf16 needs sm_80.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 KIMI_WHERE) {
#ifdef __CUDACC__
#if KIMI_PTX(800)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
#else
  emu::mma_bf16(d, a, b0, b1, where);
#endif
}

// d += a b for signed bytes: a [16, 32] row-major, b [32, 8] column-major, sums exact. sm_75 has it in smaller pieces.
__device__ __forceinline__ void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 KIMI_WHERE) {
#ifdef __CUDACC__
#if KIMI_PTX(800)
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  // m8n8k16: rows 0..7 are a0 (columns 0..15) and a2, rows 8..15 are a1 and a3.
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[0]), "r"(b0));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1])
               : "r"(a[2]), "r"(b1));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[2]), "+r"(d[3])
               : "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[2]), "+r"(d[3])
               : "r"(a[3]), "r"(b1));
#endif
#else
  emu::mma_s8(d, a, b0, b1, where);
#endif
}

// ---- launching, from the host ---------------------------------------------------------------------------------------------
struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
  bool dependent = false;    // may begin while the kernel before it ends: it calls dependency_wait
  bool cooperative = false;  // all blocks run at the same time
};

template <typename... P, typename... A>
cudaError_t launch(const char* name, void (*kernel)(P...), const Launch& how, A&&... args) {
#ifdef __CUDACC__
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared;
  config.stream = how.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (how.dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (how.shared > 48 * 1024)
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared));
        error != cudaSuccess)
      return error;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(args))...);
#else
  emu::Bound<P...> bound{kernel, std::tuple<P...>(static_cast<P>(std::forward<A>(args))...)};
  const emu::Shape shape{how.grid, how.block, how.shared, how.cooperative, how.dependent};
  emu::enqueue(how.stream,
               [name, shape, bound]() mutable { emu::run_grid(name, shape, &bound, sizeof bound, emu::Bound<P...>::call); });
  return cudaSuccess;
#endif
}

// No kernel writes to this allocation any more: the emulator holds them to it.
inline void seal_weights([[maybe_unused]] const void* p) {
#ifndef __CUDACC__
  emu::mark_weights(p);
#endif
}

}  // namespace kimi::cuda
