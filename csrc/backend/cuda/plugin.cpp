// The doors of the library.
#include "backend/plugin/plugin.h"

#include "backend/cuda/cuda_backend.h"

extern "C" __attribute__((visibility("default"))) const char* kimi_plugin_abi() { return KIMI_PLUGIN_ABI; }

extern "C" __attribute__((visibility("default"))) kimi::Backend* kimi_plugin_make(const kimi::BackendOptions& options) {
  return kimi::cuda::make_cuda_backend(kimi::cuda::CudaOptions::from(options)).release();
}
