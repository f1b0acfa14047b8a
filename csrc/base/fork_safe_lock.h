// A lock for a few instructions that a forked child can take although a thread of its parent held it: that thread does not exist
// in the child. Waiters give up the processor.
#pragma once
#include <atomic>
#include <thread>

#include "base/thread_pool.h"

namespace kimi {

class ForkSafeLock {
 public:
  void lock() {
    const int mine = fork_generation() + 1;
    for (;;) {
      int holder = 0;
      if (holder_.compare_exchange_weak(holder, mine, std::memory_order_acquire)) return;
      if (holder != 0 && holder != mine && holder_.compare_exchange_strong(holder, mine, std::memory_order_acquire)) return;
      if (holder != 0) std::this_thread::yield();
    }
  }
  void unlock() { holder_.store(0, std::memory_order_release); }

 private:
  std::atomic<int> holder_{0};  // 1 + the fork generation of the holder's process; 0: nobody
};

}  // namespace kimi
