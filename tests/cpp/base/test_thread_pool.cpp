// The pool: every chunk once, errors and interrupts reach the caller, and a pool survives them. Also run under TSan.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

using kimi::ThreadPool;

TEST_CASE("every chunk runs exactly once") {
  for (int n_threads : {1, 2, 5}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t n = round % 70;
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
      pool.parallel_for(n, [&](int64_t chunk, int thread) {
        CHECK_UNARY(thread >= 0 && thread < n_threads);
        hits[static_cast<size_t>(chunk)].fetch_add(1);
      });
      for (const auto& hit : hits) CHECK(hit.load() == 1);
    }
  }
}

TEST_CASE("plain memory written in a loop is visible after it") {
  ThreadPool pool(4);
  std::vector<int> values(1000, 0);
  for (int round = 1; round <= 50; ++round) {
    pool.parallel_for(1000, [&](int64_t i, int) { values[static_cast<size_t>(i)] += 1; });
    CHECK(values.front() == round);
    CHECK(values.back() == round);
  }
}

TEST_CASE("an exception of a chunk reaches the caller and the pool lives on") {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    CHECK_THROWS_AS(pool.parallel_for(100,
                                      [](int64_t chunk, int) {
                                        if (chunk == 37) kimi::fail(kimi::ErrorKind::internal, "test", "chunk %d", 37);
                                      }),
                    kimi::Error);
    std::atomic<int> count{0};
    pool.parallel_for(10, [&](int64_t, int) { ++count; });
    CHECK(count == 10);
  }
}

TEST_CASE("an interrupt skips what is left and throws cancelled") {
  struct Stop final : kimi::Interrupt {
    bool stop_requested() override { return true; }
  } stop;
  for (int n_threads : {1, 3}) {
    ThreadPool pool(n_threads);
    pool.set_interrupt(&stop);
    std::atomic<int> count{0};
    try {
      pool.parallel_for(1000, [&](int64_t, int) {
        ++count;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
      FAIL("not cancelled");
    } catch (const kimi::Error& error) {
      CHECK(error.kind() == kimi::ErrorKind::cancelled);
    }
    CHECK(count < 1000);
    pool.set_interrupt(nullptr);
    count = 0;
    pool.parallel_for(10, [&](int64_t, int) { ++count; });
    CHECK(count == 10);
  }
}

#if !defined(__SANITIZE_THREAD__)  // TSan does not follow threads that start after a fork
TEST_CASE("a forked child starts threads of its own") {
  ThreadPool pool(3);
  pool.parallel_for(10, [](int64_t, int) {});
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> count{0};
    pool.parallel_for(100, [&](int64_t, int) { ++count; });
    _exit(count == 100 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  std::atomic<int> count{0};
  pool.parallel_for(10, [&](int64_t, int) { ++count; });
  CHECK(count == 10);
}
#endif
