// A pool of threads that run the chunks of one loop at a time. Owns the threads; knows nothing of what they compute.
//
// Chunks are handed out by one atomic counter, so a thread that is slow (or not scheduled at all) takes fewer of them.
// Waiters spin for a few microseconds and then sleep: on a busy machine a spinning thread takes the processor from the
// very thread it waits for.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

namespace kimi {

// Asked by the calling thread between chunks, at most every 20 ms.
class Interrupt {
 public:
  virtual ~Interrupt() = default;
  virtual bool stop_requested() = 0;
};

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // including the calling thread; at least 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // Runs body(chunk, thread) for chunk in [0, n_chunks); thread in [0, n_threads). Blocks. One call at a time.
  // Rethrows the first exception of a chunk; throws Error(cancelled) when the interrupt asked to stop (the remaining
  // chunks are skipped). Safe after fork(): the child starts threads of its own.
  template <typename Body>
  void parallel_for(int64_t n_chunks, const Body& body) {
    run(
        n_chunks, [](void* context, int64_t chunk, int thread) { (*static_cast<const Body*>(context))(chunk, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  // The interrupt that following loops ask; nullptr: none.
  void set_interrupt(Interrupt* interrupt) { interrupt_ = interrupt; }
  void check_interrupt();  // throws Error(cancelled)

 private:
  using Function = void (*)(void* context, int64_t chunk, int thread);
  struct State;
  void run(int64_t n_chunks, Function function, void* context);
  void start();
  bool interrupted();

  int n_threads_;
  std::unique_ptr<State> state_;
  int fork_generation_ = 0;
  Interrupt* interrupt_ = nullptr;
  int64_t last_poll_ns_ = 0;
};

// Counts the forks that led to this process: what was shared with threads of the parent must be made anew.
int fork_generation();

}  // namespace kimi
