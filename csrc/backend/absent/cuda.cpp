// The registry's row of the CUDA backend where it was not built.
#include "backend/registry.h"
#include "base/error.h"

namespace kimi {

std::unique_ptr<Backend> make_cuda(const BackendOptions&) {
  fail(ErrorKind::unsupported, "device.not_built", "this build has no CUDA backend: use the backend cpu");
}

}  // namespace kimi
