// The runtime's functions. Streams are queues that run when somebody synchronises: host code that reads too early sees
// poison, and pageable memory that is freed too early is caught by the usual tools.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda_emulator/state.h"

namespace emu {

void* allocate_device(size_t bytes);
bool release_device(void* p);
size_t device_bytes();
void host_wrote(const void* p, size_t bytes);

struct Event {
  Stream* stream = nullptr;
  uint64_t ticket = 0;  // of the stream when it was recorded
};
struct Graph {
  std::vector<std::function<void()>> work;
};
struct Stream {
  std::deque<std::function<void()>> work;
  uint64_t issued = 0, done = 0;
  Graph* capture = nullptr;
};

namespace {
long calls = 0;
bool injected() { return calls++ == options.fail_call; }

void run_until(Stream* s, uint64_t ticket) {
  while (s->done < ticket && !s->work.empty()) {
    auto work = std::move(s->work.front());
    s->work.pop_front();
    ++s->done;
    work();
  }
  device_access(false);
}
}  // namespace

long runtime_calls() { return calls; }

void enqueue(Stream* stream, std::function<void()> work) {
  if (stream->capture) {
    stream->capture->work.push_back(std::move(work));
    return;
  }
  stream->work.push_back(std::move(work));
  ++stream->issued;
}

}  // namespace emu

using namespace emu;

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "unspecified launch failure";
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor         ? 8
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? options.max_shared_bytes
                                                                  : 0;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *total = options.device_bytes;
  *available = *total - std::min(*total, device_bytes());
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = nullptr;
  if (injected() || device_bytes() + bytes > options.device_bytes) return cudaErrorMemoryAllocation;
  *p = allocate_device(bytes ? bytes : 1);
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* p) {
  if (p && !release_device(p)) fail("cudaFree of what is not an allocation");
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  if (injected()) return cudaErrorMemoryAllocation;
  *p = std::malloc(bytes);
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* p) {
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (injected()) return cudaErrorLaunchFailure;
  const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
  if (bytes && (to_device != (region_of(to) == Region::device) || from_device != (region_of(from) == Region::device)))
    fail("cudaMemcpyAsync: an address is not of the kind named");
  enqueue(stream, [=] {
    device_access(true);
    std::memcpy(to, from, bytes);
    if (to_device) host_wrote(to, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (injected()) return cudaErrorLaunchFailure;
  enqueue(stream, [=] {
    device_access(true);
    std::memset(to, value, bytes);
    host_wrote(to, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  if (injected()) return cudaErrorLaunchFailure;
  *stream = new Stream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run_until(stream, stream->issued);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->capture) fail("synchronising a stream that is being captured");
  if (injected()) {  // a device that has failed runs nothing any more
    stream->done += stream->work.size();
    stream->work.clear();
    return cudaErrorLaunchFailure;
  }
  run_until(stream, stream->issued);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, stream->issued};
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Event recorded = *event;
  if (recorded.stream) enqueue(stream, [recorded] { run_until(recorded.stream, recorded.ticket); });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int) {
  stream->capture = new Graph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new Graph(*graph);
  return injected() ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (injected()) return cudaErrorLaunchFailure;
  for (const auto& work : exec->work) enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
