// The int8 products of many rows. A unit of its own: it takes the compiler as long as all the others.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/gemm_int8.h"

namespace kimi::cuda {

ProductKernel CudaBackend::gemm_int8_kernel(quant::Type type) {
  ProductKernel kernel{"gemm_int8", nullptr, kGemmRows, kGemmTokens, kGemmThreads, sizeof(GemmInt8Shared)};
  switch (type) {
#define KIMI_CASE(name)                        \
  case quant::Type::name:                      \
    kernel.run = gemm_int8<quant::Type::name>; \
    break;
    KIMI_CUDA_FORMATS(KIMI_CASE)
#undef KIMI_CASE
    default:
      break;
  }
  return kernel;
}

}  // namespace kimi::cuda
