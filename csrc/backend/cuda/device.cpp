#include "backend/cuda/device.h"

#include "base/error.h"
#include "base/thread_pool.h"

namespace kimi::cuda {
namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

struct DeviceMemory final : Buffer::Memory {
  DeviceMemory(Device& owner, size_t n) : device(owner) {
    check(cudaMalloc(&data, n), "allocating memory");
    bytes = n;
  }
  // Operations that use it may be under way. Errors of those surface where the next result is asked for.
  ~DeviceMemory() override {
    const Lock lock(device.lock());
    static_cast<void>(cudaStreamSynchronize(device.stream()));
    static_cast<void>(cudaFree(data));
  }
  Device& device;
};

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  KIMI_CHECK(error != cudaErrorMemoryAllocation, ErrorKind::out_of_memory, "memory.device",
             "%s: the GPU is out of memory: use a smaller context (n_ctx), a smaller picture or a smaller quantization, or close "
             "other programs that use the GPU",
             what);
  fail(ErrorKind::internal, "device.failed", "%s: the GPU reports \"%s\" (%d); open the model again", what,
       cudaGetErrorString(error), static_cast<int>(error));
}

Device::Device() : fork_generation_(fork_generation()) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  KIMI_CHECK(error == cudaSuccess && count > 0, ErrorKind::unsupported, "device.none",
             "no GPU was found (%s): use the device cpu, or install NVIDIA's driver", cudaGetErrorString(error));
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "choosing a GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU's architecture");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the GPU's architecture");
  check(cudaDeviceGetAttribute(&shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for shared memory");
  KIMI_CHECK(major >= 8, ErrorKind::unsupported, "device.too_old",
             "the GPU has compute capability %d.%d, expected at least 8.0: use the device cpu", major, minor);
  description_ = format_string("sm_%d%d", major, minor);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

Device::~Device() {
  if (stream_) static_cast<void>(cudaStreamDestroy(stream_));
}

void Device::check_process() const {
  KIMI_CHECK(fork_generation() == fork_generation_, ErrorKind::unsupported, "device.forked",
             "a GPU cannot be used by a process that was forked from the one that opened the model: open it again here");
}

Buffer Device::allocate(size_t bytes) {
  const Lock lock(lock_);
  check_process();
  return Buffer(std::make_unique<DeviceMemory>(*this, bytes));
}

uint64_t Device::available_memory() const {
  const Lock lock(lock_);
  size_t available = 0, total = 0;
  return cudaMemGetInfo(&available, &total) == cudaSuccess ? available : 0;
}

void Device::upload(void* to, const void* host, size_t bytes) {
  const Lock lock(lock_);
  check_process();
  check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream_), "copying to the GPU");
  check(cudaStreamSynchronize(stream_), "copying to the GPU");
}

void Device::download(void* host, const void* from, size_t bytes) {
  const Lock lock(lock_);
  check_process();
  check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream_), "copying from the GPU");
  check(cudaStreamSynchronize(stream_), "copying from the GPU");
}

void Device::copy(void* to, const void* from, size_t bytes) {
  const Lock lock(lock_);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copying on the GPU");
}

void Device::clear(void* to, size_t bytes) {
  const Lock lock(lock_);
  check(cudaMemsetAsync(to, 0, bytes, stream_), "clearing memory of the GPU");
}

void Device::finish() {
  const Lock lock(lock_);
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

}  // namespace kimi::cuda
