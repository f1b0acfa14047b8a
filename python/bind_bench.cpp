// bench: what this machine could do at most, measured. Threads are handed small pieces of work and counted together in windows
// of some milliseconds; the answer is the rate that the best tenth of the windows reached, so that a neighbour who takes the
// processor for a moment does not lower the ceiling.
#include <pybind11/pybind11.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/kernels/peak.h"
#include "base/cpu_count.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "bindings.h"

namespace py = pybind11;

namespace kimi {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Ctrl-C between windows; only the main thread runs signal handlers.
void check_signals() {
  py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

int checked_threads(int n_threads, double seconds) {
  KIMI_CHECK(n_threads >= 0 && n_threads <= 1024, ErrorKind::bad_request, "bench.n_threads",
             "n_threads is %d, expected 0 (automatic) to 1024", n_threads);
  KIMI_CHECK(std::isfinite(seconds) && seconds > 0 && seconds <= 60, ErrorKind::bad_request, "bench.seconds",
             "seconds is %g, expected more than 0 and at most 60", seconds);
  return n_threads > 0 ? n_threads : count_cpus().threads;
}

// The best tenth of the windows: window() does `amount` of work each time.
template <typename Window>
double best_rate(double amount, double seconds, const Window& window) {
  std::vector<double> rates;
  window();  // threads start, pages are there
  for (const double end = now() + seconds; rates.size() < 3 || now() < end;) {
    const double start = now();
    window();
    rates.push_back(amount / (now() - start));
    check_signals();
  }
  const auto tenth = rates.end() - 1 - static_cast<std::ptrdiff_t>(rates.size() / 10);
  std::nth_element(rates.begin(), tenth, rates.end());
  return *tenth / 1e9;
}

double peak(const cpu::PeakLoop& loop, int n_threads, double seconds) {
  const int threads = checked_threads(n_threads, seconds);
  if (!loop.run) return 0;
  py::gil_scoped_release release;
  ThreadPool pool(threads);
  const int64_t n_chunks = 8 * static_cast<int64_t>(threads);
  return best_rate(static_cast<double>(n_chunks) * loop.ops, seconds,
                   [&] { pool.parallel_for(n_chunks, [&](int64_t, int) { loop.run(); }); });
}

typedef uint64_t Line __attribute__((vector_size(64)));
constexpr int64_t kLineBytes = 64, kChunkBytes = int64_t{2} << 20, kWindowBytes = int64_t{64} << 20;

uint64_t read_lines(const uint8_t* p, int64_t bytes) {
  Line a{}, b{};
  for (int64_t i = 0; i + 2 * kLineBytes <= bytes; i += 2 * kLineBytes) {
    a ^= *reinterpret_cast<const Line*>(p + i);
    b ^= *reinterpret_cast<const Line*>(p + i + kLineBytes);
  }
  a ^= b;
  uint64_t all = 0;
  for (int i = 0; i < 8; ++i) all ^= a[i];
  return all;
}

// Several times what the caches hold, but no more than an eighth of the memory that is free.
int64_t buffer_bytes() {
  int64_t cache = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
  cache = std::max<int64_t>(cache, sysconf(_SC_LEVEL3_CACHE_SIZE));
#endif
  const int64_t wanted = std::max(8 * kWindowBytes, 4 * cache), room = static_cast<int64_t>(memory_info().available / 8);
  return std::max<int64_t>(1, std::min(wanted, room) / kWindowBytes) * kWindowBytes;
}

// Zeroed pages, large ones where the system has them: writing them for the first time takes most of a short measurement.
class Pages {
 public:
  explicit Pages(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KIMI_CHECK(memory != MAP_FAILED, ErrorKind::out_of_memory, "memory.allocation",
               "could not allocate %zu MiB to measure the memory with: close other programs", bytes_ >> 20);
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes_, MADV_HUGEPAGE);
#endif
    data_ = static_cast<uint8_t*>(memory);
  }
  ~Pages() { munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }

 private:
  size_t bytes_;
  uint8_t* data_;
};

double read_bandwidth(int n_threads, double seconds) {
  const int threads = checked_threads(n_threads, seconds);
  py::gil_scoped_release release;
  const int64_t bytes = buffer_bytes();
  const Pages buffer(bytes);
  ThreadPool pool(threads);
  // Written by the threads that read it: pages that were never written are all the same one.
  pool.parallel_for(bytes / kChunkBytes, [&](int64_t chunk, int) {
    std::memset(buffer.data() + chunk * kChunkBytes, static_cast<int>(chunk % 251), kChunkBytes);
  });
  int64_t at = 0;
  std::vector<uint64_t> results(static_cast<size_t>(threads) * 8);
  return best_rate(static_cast<double>(kWindowBytes), seconds, [&] {
    pool.parallel_for(kWindowBytes / kChunkBytes, [&](int64_t chunk, int thread) {
      results[static_cast<size_t>(thread) * 8] ^= read_lines(buffer.data() + at + chunk * kChunkBytes, kChunkBytes);
    });
    asm volatile("" : : "r"(results.data()) : "memory");
    at = (at + kWindowBytes) % bytes;
  });
}

}  // namespace

void bind_bench(py::module_& m) {
  py::module_ bench = m.def_submodule("bench", "What this machine could do at most. n_threads 0: automatic.");
  bench.def("read_bandwidth", &read_bandwidth, py::arg("n_threads") = 0, py::arg("seconds") = 0.3,
            "Reading memory beyond all caches: GB/s.");
  const auto add = [&](const char* name, cpu::PeakLoop cpu::Peaks::* loop, const char* doc) {
    bench.def(
        name,
        [loop](const std::string& isa, int n_threads, double seconds) {
          return peak(cpu::peaks(isa.c_str()).*loop, n_threads, seconds);
        },
        py::arg("isa") = "auto", py::arg("n_threads") = 0, py::arg("seconds") = 0.2, doc);
  };
  add("int8_peak", &cpu::Peaks::int8, "Multiply-adds of int8, two operations each: GOPS.");
  add("f32_peak", &cpu::Peaks::f32, "Multiply-adds of float32, two operations each: GFLOPS.");
  add("bf16_peak", &cpu::Peaks::bf16,
      "Multiply-adds of bfloat16, two operations each: GFLOPS; 0.0 when the instruction set has none.");
}

}  // namespace kimi
