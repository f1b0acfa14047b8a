// One GPU: its stream, its memory, and the one place that turns its errors into Error. Knows no operation.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "backend/cuda/primitives.h"
#include "backend/tensor.h"

namespace kimi::cuda {

// Throws Error(out_of_memory, "memory.device") and, for everything else, Error(internal, "device.failed"), which name `what`.
void check(cudaError_t error, const char* what);

// All functions may be called by several threads; work of all of them runs in order.
class Device {
 public:
  // Throws Error(unsupported, "device.none") where there is no GPU.
  Device();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const std::string& description() const { return description_; }  // for people: "NVIDIA H100 80GB HBM3"
  cudaStream_t stream() const { return stream_; }
  int shared_bytes() const { return shared_bytes_; }  // that a block may have

  Buffer allocate(size_t bytes);  // waits for all work when it is given back
  uint64_t available_memory() const;
  void upload(void* to, const void* host, size_t bytes);  // `host` may change when it returns
  void download(void* host, const void* from, size_t bytes);
  void copy(void* to, const void* from, size_t bytes);
  void clear(void* to, size_t bytes);
  void finish();

  // Every call of the runtime and of launch() is made while this is held.
  std::recursive_mutex& lock() const { return lock_; }

 private:
  void check_process() const;  // throws Error(unsupported, "device.forked")

  mutable std::recursive_mutex lock_;
  cudaStream_t stream_ = nullptr;
  std::string description_;
  int shared_bytes_ = 0;
  int fork_generation_;
};

}  // namespace kimi::cuda
