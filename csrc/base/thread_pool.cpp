#include "base/thread_pool.h"

#include <pthread.h>

#include <chrono>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace kimi {
namespace {

// A ticket packs the loop's generation, its number of chunks and the next chunk to hand out, so that a thread that
// arrives late can tell from the number alone that nothing is left for it.
constexpr int kChunkBits = 22;
constexpr uint64_t kChunkMask = (uint64_t{1} << kChunkBits) - 1;
constexpr int64_t kMaxChunks = static_cast<int64_t>(kChunkMask) / 2;
constexpr int kSpins = 400;  // a few microseconds
constexpr int64_t kPollNs = 20'000'000;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

std::atomic<int> forks{0};

}  // namespace

int fork_generation() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); }); });
  return forks.load(std::memory_order_relaxed);
}

struct ThreadPool::State {
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<uint32_t> done{0};  // chunks finished
  alignas(64) std::atomic<uint32_t> wake{0};  // counts loops; sleepers wait on it
  std::atomic<bool> stop{false};              // skip what is left of this loop
  std::atomic<bool> quit{false};
  Function function = nullptr;
  void* context = nullptr;
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<std::thread> threads;

  // Takes one chunk of the current loop and runs it. False: there was none left.
  bool run_one(int thread) {
    const uint64_t ticket_before = ticket.fetch_add(1, std::memory_order_acq_rel);
    const uint64_t chunk = ticket_before & kChunkMask, count = (ticket_before >> kChunkBits) & kChunkMask;
    if (chunk >= count) return false;
    if (!stop.load(std::memory_order_relaxed)) {
      try {
        function(context, static_cast<int64_t>(chunk), thread);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        stop.store(true, std::memory_order_relaxed);
      }
    }
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) done.notify_one();
    return true;
  }

  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && wake.load(std::memory_order_acquire) == seen; ++spin) pause_briefly();
      wake.wait(seen, std::memory_order_acquire);
      seen = wake.load(std::memory_order_acquire);
      if (quit.load(std::memory_order_acquire)) return;
      while (run_one(thread)) {
      }
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads) { start(); }

void ThreadPool::start() {
  fork_generation_ = fork_generation();
  state_ = std::make_unique<State>();
  for (int i = 1; i < n_threads_; ++i) state_->threads.emplace_back([state = state_.get(), i] { state->work(i); });
}

ThreadPool::~ThreadPool() {
  if (fork_generation_ != fork_generation()) {
    static_cast<void>(state_.release());  // its threads live in the parent only; joining them here would never end
    return;
  }
  state_->quit.store(true, std::memory_order_release);
  state_->wake.fetch_add(1, std::memory_order_release);
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

bool ThreadPool::interrupted() {
  if (!interrupt_) return false;
  const int64_t now = now_ns();
  if (now - last_poll_ns_ < kPollNs) return false;
  last_poll_ns_ = now;
  return interrupt_->stop_requested();
}

void ThreadPool::check_interrupt() {
  if (interrupted()) fail(ErrorKind::cancelled, "request.cancelled", "cancelled");
}

void ThreadPool::run(int64_t n_chunks, Function function, void* context) {
  if (n_chunks <= 0) return;
  if (fork_generation_ != fork_generation()) {
    static_cast<void>(state_.release());
    start();
  }
  if (n_threads_ == 1 || n_chunks == 1) {
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
      if (interrupted()) fail(ErrorKind::cancelled, "request.cancelled", "cancelled");
      function(context, chunk, 0);
    }
    return;
  }
  KIMI_DCHECK(n_chunks <= kMaxChunks);
  State& state = *state_;
  state.function = function;
  state.context = context;
  state.error = nullptr;
  state.stop.store(false, std::memory_order_relaxed);
  state.done.store(0, std::memory_order_relaxed);
  const uint64_t generation = (state.ticket.load(std::memory_order_relaxed) >> (2 * kChunkBits)) + 1;
  state.ticket.store(generation << (2 * kChunkBits) | static_cast<uint64_t>(n_chunks) << kChunkBits, std::memory_order_release);
  state.wake.fetch_add(1, std::memory_order_release);
  state.wake.notify_all();

  bool cancelled = false;
  while (state.run_one(0)) {
    if (!cancelled && interrupted()) {
      cancelled = true;
      state.stop.store(true, std::memory_order_relaxed);
    }
  }
  const uint32_t all = static_cast<uint32_t>(n_chunks);
  for (int spin = 0; spin < kSpins && state.done.load(std::memory_order_acquire) != all; ++spin) pause_briefly();
  for (uint32_t done = state.done.load(std::memory_order_acquire); done != all; done = state.done.load(std::memory_order_acquire))
    state.done.wait(done, std::memory_order_acquire);
  if (state.error) std::rethrow_exception(std::exchange(state.error, nullptr));
  if (cancelled) fail(ErrorKind::cancelled, "request.cancelled", "cancelled");
}

}  // namespace kimi
