// Single kernels in the emulator, for the comparison with the compiler's PTX: device memory, and launches by name with the bytes
// of their arguments, as a driver takes them.
#include <cstring>
#include <map>
#include <string>

#include "backend/cuda/kernels/attention_72.h"
#include "backend/cuda/kernels/gemm_bf16.h"
#include "backend/cuda/kernels/gemm_int8.h"
#include "backend/cuda/kernels/products.h"
#include "backend/cuda/kernels/rows.h"
#include "cuda_emulator/emu.h"
#include "cuda_emulator/probe.h"

using namespace kimi::cuda;

namespace {

struct ProbeArgs {
  const uint32_t* in;
  uint32_t* out;
};
void run_probe(ProbeArgs args) { probe(args.in, args.out); }

template <typename Args, void (*kernel)(Args)>
void call(void* args) {
  kernel(*static_cast<Args*>(args));
}

using Call = void (*)(void*);
const std::map<std::string, Call>& kernels() {
  static const std::map<std::string, Call>* all =
      new std::map<std::string, Call>{{"probe", call<ProbeArgs, run_probe>},
                                      {"rms_norm", call<NormArgs, rms_norm>},
                                      {"quantize_rows", call<QuantizeArgs, quantize_rows>},
                                      {"gemm_bf16", call<GemmArgs, gemm_bf16<32, 32, 32, 3, 1, 2>>},
                                      {"attend_heads_of_72", call<HeadsOf72Args, attend_heads_of_72<4>>},
#define KIMI_ROW(name) {"product_int8 " #name, call<ProductArgs, product_int8<kimi::quant::Type::name, 1>>},
                                      KIMI_CUDA_FORMATS(KIMI_ROW)
#undef KIMI_ROW
#define KIMI_ROW(name) {"gemm_int8 " #name, call<ProductArgs, gemm_int8<kimi::quant::Type::name>>},
                                          KIMI_CUDA_FORMATS(KIMI_ROW)
#undef KIMI_ROW
      };
  return *all;
}

cudaStream_t stream() {
  static cudaStream_t one = [] {
    cudaStream_t made = nullptr;
    static_cast<void>(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  }();
  return one;
}

}  // namespace

#define KIMI_EXPORT extern "C" __attribute__((visibility("default")))

KIMI_EXPORT uint64_t emulator_put(const void* host, uint64_t bytes) {
  void* p = nullptr;
  if (cudaMalloc(&p, bytes) != cudaSuccess) return 0;
  static_cast<void>(cudaMemcpyAsync(p, host, bytes, cudaMemcpyHostToDevice, stream()));
  static_cast<void>(cudaStreamSynchronize(stream()));
  return reinterpret_cast<uint64_t>(p);
}
KIMI_EXPORT void emulator_get(void* host, uint64_t from, uint64_t bytes) {
  static_cast<void>(cudaMemcpyAsync(host, reinterpret_cast<const void*>(from), bytes, cudaMemcpyDeviceToHost, stream()));
  static_cast<void>(cudaStreamSynchronize(stream()));
}
KIMI_EXPORT void emulator_give(uint64_t p) { static_cast<void>(cudaFree(reinterpret_cast<void*>(p))); }

// -> whether there is such a kernel
KIMI_EXPORT int emulator_launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, uint64_t shared, void* args,
                                uint64_t args_bytes) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) return 0;
  const emu::Shape shape{dim3(grid_x, grid_y), dim3(threads), shared, false, false};
  emu::enqueue(stream(), [=] { emu::run_grid(found->first.c_str(), shape, args, args_bytes, found->second); });
  static_cast<void>(cudaStreamSynchronize(stream()));
  return 1;
}
