// The int8 kernels of every instruction set this processor has: first checked bit by bit against a scalar twin, with the data
// lying flush against an unreadable page, then timed beside the machine's own peaks measured in the same run.
//
//   bench_int8 [check] [quant] [gemm] [gemv] [isa=NAME] [type=NAME] [seconds=0.2] [threads=1]
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/peak.h"
#include "base/isa.h"
#include "quant/blocks.h"
#include "settings.h"
#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC bug 105593, in its own header
#include <immintrin.h>
#endif

using namespace kimi;
using cpu::KernelTable;
using cpu::PanelQ8;
using cpu::Q8Block;
using cpu::Q8Rows;
using quant::Type;

namespace {

struct Options {
  std::set<std::string> what;
  std::string isa, type;
  double seconds = 0.2;
  int threads = 1;
  bool wants(const char* name) const { return what.empty() || what.count(name); }
} options;

// ---- memory whose last byte is followed by an unreadable page --------------------------------------------------------
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) std::abort();
    data_ = base_ + mapped_ - page - bytes;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  size_t mapped_;
  uint8_t *base_, *data_;
};

// ---- formats ---------------------------------------------------------------------------------------------------------
struct FormatOps {
  Type type;
  const char* name;
  int elems, bytes, group;
  bool has_min;
  void (*unpack)(const uint8_t* block, int8_t* q, float* scale, float* min);
  std::vector<int> f16_at;  // where the block keeps halves: random ones of a sane size
};

template <Type type>
FormatOps ops(const char* name, std::vector<int> f16_at) {
  using Traits = quant::BlockTraits<type>;
  return {type,
          name,
          Traits::elems,
          static_cast<int>(sizeof(typename Traits::Block)),
          Traits::group,
          Traits::has_min,
          [](const uint8_t* block, int8_t* q, float* scale, float* min) {
            unpack(*reinterpret_cast<const typename Traits::Block*>(block), q, scale, min);
          },
          std::move(f16_at)};
}

const std::vector<FormatOps>& all_formats() {
  static const std::vector<FormatOps> list = {
      ops<Type::Q4_K>("Q4_K", {0, 2}),  ops<Type::Q6_K>("Q6_K", {208}),     ops<Type::Q5_0>("Q5_0", {0}),
      ops<Type::Q8_0>("Q8_0", {0}),     ops<Type::Q5_K>("Q5_K", {0, 2}),    ops<Type::Q5_1>("Q5_1", {0, 2}),
      ops<Type::Q4_0>("Q4_0", {0}),     ops<Type::Q4_1>("Q4_1", {0, 2}),    ops<Type::IQ4_NL>("IQ4_NL", {0}),
      ops<Type::IQ4_XS>("IQ4_XS", {0}), ops<Type::Q3_K>("Q3_K", {108}),     ops<Type::Q2_K>("Q2_K", {80, 82}),
      ops<Type::MXFP4>("MXFP4", {}),    ops<Type::IQ3_XXS>("IQ3_XXS", {0}), ops<Type::IQ3_S>("IQ3_S", {0}),
      ops<Type::IQ2_S>("IQ2_S", {0}),   ops<Type::IQ1_S>("IQ1_S", {0}),     ops<Type::TQ2_0>("TQ2_0", {64}),
  };
  return list;
}

std::mt19937 random_engine(1);

void fill_weights(const FormatOps& format, uint8_t* to, int64_t n_blocks) {
  std::uniform_real_distribution<float> half(-0.02f, 0.02f);
  for (int64_t b = 0; b < n_blocks; ++b) {
    uint8_t* block = to + b * format.bytes;
    for (int i = 0; i < format.bytes; ++i) block[i] = static_cast<uint8_t>(random_engine());
    for (const int at : format.f16_at) {
      const uint16_t h = f16_from_f32(half(random_engine));
      std::memcpy(block + at, &h, 2);
    }
    if (format.type == Type::MXFP4) block[0] = static_cast<uint8_t>(b < 4 ? b : 118 + random_engine() % 8);
  }
}

// ---- the scalar twin -------------------------------------------------------------------------------------------------
struct Twin {
  int64_t k;
  std::vector<int8_t> q;
  std::vector<float> scale, min;
};

Twin unpack_row(const FormatOps& format, const uint8_t* row, int64_t k) {
  Twin twin{k, std::vector<int8_t>(static_cast<size_t>(k)), std::vector<float>(static_cast<size_t>(k / format.group)),
            std::vector<float>(static_cast<size_t>(k / format.group))};
  for (int64_t b = 0; b < k / format.elems; ++b)
    format.unpack(row + b * format.bytes, twin.q.data() + b * format.elems, twin.scale.data() + b * (format.elems / format.group),
                  twin.min.data() + b * (format.elems / format.group));
  return twin;
}

float twin_dot(const Twin& w, int group, bool has_min, const Q8Rows& x, int64_t j, bool fused) {
  float acc = 0;
  for (int64_t g = 0; g < w.k / group; ++g) {
    const Q8Block& block = x.blocks[(j * x.k + g * group) / 32];
    const int64_t half = group == 16 ? g % 2 : 0;
    int32_t dot = 0;
    for (int i = 0; i < group; ++i) dot += w.q[static_cast<size_t>(g * group + i)] * block.q[half * 16 + i];
    volatile float scale = w.scale[static_cast<size_t>(g)] * block.scale;
    volatile float product = static_cast<float>(dot) * scale;
    acc = fused ? std::fma(static_cast<float>(dot), scale, acc) : product + acc;
    if (has_min) {
      const float sum = group == 16 ? block.half_sum[half] : block.sum;
      volatile float term = w.min[static_cast<size_t>(g)] * sum;
      acc = fused ? std::fma(-w.min[static_cast<size_t>(g)], sum, acc) : acc - term;
    }
  }
  return acc;
}

void twin_quantize(const float* x, int64_t k, Q8Block* out) {
  for (int64_t g = 0; g < k / 32; ++g) {
    float amax = 0;
    bool nan = false;
    for (int i = 0; i < 32; ++i) {
      nan |= std::isnan(x[32 * g + i]);
      amax = std::max(amax, std::fabs(x[32 * g + i]));
    }
    if (nan) amax = std::numeric_limits<float>::quiet_NaN();
    volatile float inverse = amax == 0 ? 0.0f : 127.0f / amax;
    Q8Block block{};
    block.scale = amax / 127.0f;
    for (int i = 0; i < 32; ++i) {
      volatile float product = x[32 * g + i] * inverse;
      const float v = product;
      block.q[i] = static_cast<int8_t>(std::isnan(v) ? 0 : std::nearbyint(std::clamp(v, -127.0f, 127.0f)));
      block.isum += block.q[i];
      block.half_isum[i / 16] += block.q[i];
    }
    block.sum = block.scale * static_cast<float>(block.isum);
    for (int half = 0; half < 2; ++half) block.half_sum[half] = block.scale * static_cast<float>(block.half_isum[half]);
    out[g] = block;
  }
}

// Activations in guarded memory.
// slack: bytes between their end and the unreadable page. Without any, masked loads are slow where their masked lanes would
// fault.
struct Activations {
  Guarded blocks;
  Q8Rows rows;
  Activations(int64_t n, int64_t k, size_t slack = 0)
      : blocks(static_cast<size_t>(n * k / 32) * sizeof(Q8Block) + slack), rows{blocks.as<Q8Block>(), k} {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(k));
    for (int64_t j = 0; j < n; ++j) {
      for (float& v : x) v = normal(random_engine);
      if (j % 3 == 1) std::fill(x.begin(), x.begin() + 32, 1.0f);  // 127 everywhere: the largest sums
      twin_quantize(x.data(), k, rows.blocks + j * (k / 32));
    }
  }
};

struct Panel {
  Guarded q, scale, min;
  PanelQ8 panel{};
  Panel(int64_t k, int64_t lanes)
      : q(static_cast<size_t>(k * lanes)),
        scale(static_cast<size_t>(k / 16 * lanes * 4)),
        min(static_cast<size_t>(k / 16 * lanes * 4)) {
    panel.q = q.as<uint8_t>();
    panel.scale = scale.as<float>();
    panel.min = min.as<float>();
  }
};

// ---- checks ----------------------------------------------------------------------------------------------------------
int failures = 0;

uint32_t bits_of(float v) { return f32_to_bits(v); }

bool same(float got, float expected, bool exact) {
  if (std::isnan(got) && std::isnan(expected)) return true;
  return exact ? bits_of(got) == bits_of(expected) : std::fabs(got - expected) <= 1e-4f * (std::fabs(expected) + 1.0f);
}

void report(const char* what, const char* isa, const char* format, int64_t row, int64_t column, double got, double expected) {
  if (failures++ < 20)
    std::printf("WRONG %s %s %s at row %ld column %ld: got %.9g, expected %.9g\n", what, isa, format, static_cast<long>(row),
                static_cast<long>(column), got, expected);
}

void check_quantize(const KernelTable& table) {
  const int64_t k = 32 * 40;
  std::normal_distribution<float> normal;
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (int round = 0; round < 200; ++round) {
    Guarded x_memory(static_cast<size_t>(k) * 4), block_memory(static_cast<size_t>(k / 32) * sizeof(Q8Block));
    float* x = x_memory.as<float>();
    for (int64_t i = 0; i < k; ++i) x[i] = normal(random_engine) * std::exp2(static_cast<float>(round % 60 - 30));
    for (int i = 0; i < 32; ++i) x[i] = 0;
    for (int i = 32; i < 64; ++i) x[i] = i % 2 ? 0.5f : 63.5f;                                        // ties
    for (int i = 64; i < 96; ++i) x[i] = f32_from_bits(static_cast<uint32_t>(random_engine() % 64));  // denormals
    x[100] = inf, x[140] = -inf, x[170] = nan, x[200] = -nan, x[201] = inf, x[230] = std::numeric_limits<float>::max();
    std::vector<Q8Block> twin(static_cast<size_t>(k / 32));
    const Q8Block* blocks = block_memory.as<Q8Block>();
    table.quantize_row(x, k, block_memory.as<Q8Block>());
    twin_quantize(x, k, twin.data());
    for (int64_t g = 0; g < k / 32; ++g) {
      const Q8Block &got = blocks[g], &want = twin[static_cast<size_t>(g)];
      for (int i = 0; i < 32; ++i)
        if (got.q[i] != want.q[i]) report("quantize q", table.name, "", round, 32 * g + i, got.q[i], want.q[i]);
      if (!same(got.scale, want.scale, true)) report("quantize scale", table.name, "", round, g, got.scale, want.scale);
      if (!same(got.sum, want.sum, true)) report("quantize sum", table.name, "", round, g, got.sum, want.sum);
      if (got.isum != want.isum) report("quantize isum", table.name, "", round, g, got.isum, want.isum);
      for (int half = 0; half < 2; ++half) {
        if (!same(got.half_sum[half], want.half_sum[half], true))
          report("quantize half sum", table.name, "", round, g, got.half_sum[half], want.half_sum[half]);
        if (got.half_isum[half] != want.half_isum[half])
          report("quantize half isum", table.name, "", round, g, got.half_isum[half], want.half_isum[half]);
      }
    }
  }
}

void check_format(const KernelTable& table, const FormatOps& format) {
  const bool fused = std::strcmp(table.name, "generic") != 0, exact = fused;
  const int type = static_cast<int>(format.type);
  const int64_t lanes = table.panel_lanes;
  for (const int64_t k : {int64_t{256}, format.elems == 32 ? int64_t{1408} : int64_t{1536}, int64_t{32}}) {
    if (k % format.elems) continue;
    for (const int64_t n_rows : {int64_t{1}, int64_t{7}, int64_t{16}, int64_t{19}, lanes, int64_t{67}}) {
      const int64_t row_bytes = k / format.elems * format.bytes, n_x = 14;
      Guarded w(static_cast<size_t>(n_rows * row_bytes));
      fill_weights(format, w.as<uint8_t>(), n_rows * k / format.elems);
      Activations x(n_x, k);
      std::vector<Twin> twins;
      for (int64_t r = 0; r < n_rows; ++r) twins.push_back(unpack_row(format, w.as<uint8_t>() + r * row_bytes, k));
      std::vector<float> expected(static_cast<size_t>(n_rows * n_x));
      for (int64_t j = 0; j < n_x; ++j)
        for (int64_t r = 0; r < n_rows; ++r)
          expected[static_cast<size_t>(j * n_rows + r)] =
              twin_dot(twins[static_cast<size_t>(r)], format.group, format.has_min, x.rows, j, fused);
      for (const int64_t n : {1, 2, 3, 4, 5, 8, 9, 14}) {
        Guarded out_memory(static_cast<size_t>(n * n_rows) * 4);
        float* out = out_memory.as<float>();
        table.gemv_q8[type](w.as<uint8_t>(), row_bytes, n_rows, x.rows, n, out, n_rows, nullptr);
        for (int64_t j = 0; j < n; ++j)
          for (int64_t r = 0; r < n_rows; ++r)
            if (!same(out[j * n_rows + r], expected[static_cast<size_t>(j * n_rows + r)], exact))
              report("gemv", table.name, format.name, r, j, out[j * n_rows + r], expected[static_cast<size_t>(j * n_rows + r)]);
      }
      if (n_rows > lanes) continue;
      Panel panel(k, lanes);
      table.pack_panel_q8[type](w.as<uint8_t>(), row_bytes, n_rows, k, &panel.panel);
      const PanelQ8& p = panel.panel;
      if (p.group != format.group || p.has_min != format.has_min || p.k != k)
        report("pack", table.name, format.name, -1, -1, p.group, format.group);
      for (int64_t r = 0; r < lanes; ++r) {
        for (int64_t i = 0; i < k; ++i) {
          const int got_q = p.q[(i / 4 * lanes + r) * 4 + i % 4] - p.bias;
          const float scale = p.scale[i / p.group * lanes + r], min = p.has_min ? p.min[i / p.group * lanes + r] : 0;
          if (r >= n_rows) {
            if (scale * static_cast<float>(got_q) - min != 0) report("pack zero", table.name, format.name, r, i, scale, 0);
            continue;
          }
          const Twin& twin = twins[static_cast<size_t>(r)];
          const auto g = static_cast<size_t>(i / p.group);
          if (got_q != twin.q[static_cast<size_t>(i)])
            report("pack q", table.name, format.name, r, i, got_q, twin.q[static_cast<size_t>(i)]);
          if (scale != twin.scale[g]) report("pack scale", table.name, format.name, r, i, scale, twin.scale[g]);
          if (p.has_min && min != twin.min[g]) report("pack min", table.name, format.name, r, i, min, twin.min[g]);
        }
      }
      const int32_t order[] = {13, 0, 5, 5, 2, 11, 7, 1, 3, 12, 4, 6, 10, 9};
      for (const int64_t n : {1, 2, 3, 4, 5, 6, 7, 13, 14}) {
        for (const int32_t* rows : {static_cast<const int32_t*>(nullptr), order}) {
          const int64_t stride = lanes + 3;
          Guarded out_memory(static_cast<size_t>((n - 1) * stride + lanes) * 4);
          float* out = out_memory.as<float>();
          table.gemm_panel_q8(p, x.rows, rows, n, out, stride);
          for (int64_t j = 0; j < n; ++j) {
            for (int64_t r = 0; r < lanes; ++r) {
              const float want = r < n_rows ? expected[static_cast<size_t>((rows ? rows[j] : j) * n_rows + r)] : 0.0f;
              const float got = out[j * stride + r];
              if (!same(got, want, exact) && !(r >= n_rows && got == 0)) report("gemm", table.name, format.name, r, j, got, want);
            }
          }
        }
      }
    }
  }
}

// ---- peaks -----------------------------------------------------------------------------------------------------------
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds of the fastest call, over `options.seconds` of calls (at least 3).
template <class F>
double best_seconds(F&& call) {
  double best = 1e30;
  const double end = now() + options.seconds;
  for (int i = 0; i < 3 || now() < end; ++i) {
    const double start = now();
    call();
    best = std::min(best, now() - start);
  }
  return best;
}

// Multiply-adds (2 operations each) a second that the ISA's widest exact integer instruction could do.
double peak_gops(const char* isa) {
  const cpu::PeakLoop loop = cpu::peaks(isa).int8;
  return loop.ops / best_seconds(loop.run) / 1e9;
}

template <class F>
void on_threads(F&& body) {
  std::vector<std::thread> threads;
  for (int t = 1; t < options.threads; ++t) threads.emplace_back([&, t] { body(t); });
  body(0);
  for (std::thread& thread : threads) thread.join();
}

#if defined(__x86_64__)
__attribute__((target("avx2"), noinline)) int read_all(const uint8_t* p, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a;
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    a = _mm256_xor_si256(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i)));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32)));
    a = _mm256_xor_si256(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 64)));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 96)));
  }
  return _mm_cvtsi128_si32(_mm256_castsi256_si128(_mm256_xor_si256(a, b)));
}
#else
int read_all(const uint8_t* p, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i + 8 <= bytes; i += 8) sum += *reinterpret_cast<const uint64_t*>(p + i);
  return static_cast<int>(sum);
}
#endif

// ---- timings ---------------------------------------------------------------------------------------------------------
void time_quantize(const KernelTable& table) {
  const int64_t k = 2048;
  std::vector<float> x(k);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(random_engine);
  Activations row(1, k, 256);
  const double s = best_seconds([&] {
    for (int i = 0; i < 100; ++i) table.quantize_row(x.data(), k, row.rows.blocks);
  });
  std::printf("%-8s quantize_row            %8.2f Gelem/s\n", table.name, 100 * static_cast<double>(k) / s / 1e9);
}

void time_gemm(const KernelTable& table, const FormatOps& format) {
  const int64_t lanes = table.panel_lanes;
  const double peak = peak_gops(table.name);
  for (const int64_t k : {int64_t{2048}, int64_t{1408}}) {
    if (k % format.elems) continue;
    const int64_t row_bytes = k / format.elems * format.bytes;
    std::vector<uint8_t> w(static_cast<size_t>(lanes * row_bytes));
    fill_weights(format, w.data(), lanes * k / format.elems);
    Panel panel(k, lanes);
    const auto pack = [&] { table.pack_panel_q8[static_cast<int>(format.type)](w.data(), row_bytes, lanes, k, &panel.panel); };
    pack();
    const double pack_s = best_seconds([&] {
                            for (int i = 0; i < 10; ++i) pack();
                          }) /
                          10;
    std::printf("%-8s %-7s K=%-5ld pack %6.1f us |", table.name, format.name, static_cast<long>(k), pack_s * 1e6);
    for (const int64_t n : {1, 4, 8, 16, 48, 192}) {
      Activations x(n, k, 256);
      std::vector<float> out(static_cast<size_t>(n * lanes));
      const int repeat = static_cast<int>(std::max<int64_t>(1, 48 / n));
      const double s = best_seconds([&] {
                         for (int i = 0; i < repeat; ++i) table.gemm_panel_q8(panel.panel, x.rows, nullptr, n, out.data(), lanes);
                       }) /
                       repeat;
      const double gops = 2.0 * static_cast<double>(k * lanes * n) / s / 1e9;
      std::printf(" n=%ld: %.0f GOPS", static_cast<long>(n), gops);
      if (peak > 0) std::printf(" %.0f%%", 100 * gops / peak);
      if (n == 48) std::printf(" (pack = %.0f%% of it)", 100 * pack_s / s);
    }
    std::printf(" | peak %.0f\n", peak);
  }
}

constexpr int64_t kMostLanes = 64;

void time_gemv(const KernelTable& table, const FormatOps& format, const uint8_t* memory, size_t memory_bytes) {
  const int64_t k = 2048, row_bytes = k / format.elems * format.bytes;
  Activations x(8, k, 256);
  const auto run = [&](const uint8_t* w, int64_t n_rows, int64_t n_x, float* out) {
    constexpr int64_t kChunk = 256;  // rows of one call, about what the engine asks for
    for (int64_t r = 0; r < n_rows; r += kChunk)
      table.gemv_q8[static_cast<int>(format.type)](w + r * row_bytes, row_bytes, std::min(kChunk, n_rows - r), x.rows, n_x,
                                                   out + r, n_rows, nullptr);
  };
  // From the cache: what the arithmetic alone could take.
  const int64_t cached_rows = (size_t{256} << 10) / static_cast<size_t>(row_bytes) / 16 * 16;
  std::vector<float> out(static_cast<size_t>(8 * cached_rows));
  std::printf("%-8s %-7s gemv cache:", table.name, format.name);
  for (const int64_t n_x : {1, 2, 4, 8}) {
    const double s = best_seconds([&] { run(memory, cached_rows, n_x, out.data()); });
    std::printf(" n=%ld %.1f", static_cast<long>(n_x), static_cast<double>(cached_rows * row_bytes) / s / 1e9);
  }
  std::printf(" GB/s | memory, %d thread%s:", options.threads, options.threads > 1 ? "s" : "");
  // From memory, in segments short enough that some of them run undisturbed on a busy machine.
  // All threads begin a segment together and the last one ends it; the rate reported is that of the best tenth of the segments.
  const int64_t segment_rows = (int64_t{8} << 20) / row_bytes / 16 * 16, segment_bytes = segment_rows * row_bytes;
  const int64_t n_segments = static_cast<int64_t>(memory_bytes) / segment_bytes / options.threads;
  const auto rate = [&](auto&& body) {
    std::vector<double> seconds(static_cast<size_t>(n_segments));
    std::barrier together(options.threads);
    on_threads([&](int t) {
      std::vector<float> result(static_cast<size_t>(8 * segment_rows));
      for (int64_t i = 0; i < n_segments; ++i) {
        together.arrive_and_wait();
        const double start = now();
        body(memory + (t * n_segments + i) * segment_bytes, result.data());
        together.arrive_and_wait();
        if (t == 0) seconds[static_cast<size_t>(i)] = now() - start;
      }
    });
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size() / 10), seconds.end());
    return static_cast<double>(options.threads * segment_bytes) / seconds[seconds.size() / 10] / 1e9;
  };
  double read_rate = 0;
  for (int i = 0; i < 5; ++i) {
    read_rate = std::max(read_rate, rate([&](const uint8_t* w, float* result) {
                           result[0] = static_cast<float>(read_all(w, static_cast<size_t>(segment_bytes)));
                         }));
  }
  for (const int64_t n_x : {1, 2, 4, 8}) {
    double best = 0;
    for (int i = 0; i < 3; ++i) {
      best = std::max(best, rate([&](const uint8_t* w, float* result) { run(w, segment_rows, n_x, result); }));
    }
    std::printf(" n=%ld %.1f (%.0f%%)", static_cast<long>(n_x), best, 100 * best / read_rate);
  }
  // Panels, too, are made of weights that come from memory.
  const double pack_rate = rate([&](const uint8_t* w, float*) {
    thread_local Panel panel(k, kMostLanes);
    for (int64_t r = 0; r + table.panel_lanes <= segment_rows; r += table.panel_lanes)
      table.pack_panel_q8[static_cast<int>(format.type)](w + r * row_bytes, row_bytes, table.panel_lanes, k, &panel.panel);
  });
  std::printf(" pack %.1f GB/s, read loop %.1f\n", pack_rate, read_rate);
}

}  // namespace

int main(int argc, char** argv) {
  const bench::Settings settings = {
      {"isa", &options.isa}, {"type", &options.type}, {"seconds", &options.seconds}, {"threads", &options.threads}};
  if (!bench::read_settings(argc, argv, settings, {"check", "quant", "gemm", "gemv"}, &options.what)) return 2;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  std::vector<const KernelTable*> tables;
  for (const Isa& isa : isas())
    if (isa.supported && (options.isa.empty() || options.isa == isa.name)) tables.push_back(&cpu::select_kernels(isa.name));
  std::vector<FormatOps> formats;
  for (const FormatOps& format : all_formats())
    if (options.type.empty() || options.type == format.name) formats.push_back(format);

  if (options.wants("check")) {
    for (const KernelTable* table : tables) {
      check_quantize(*table);
      for (const FormatOps& format : formats) check_format(*table, format);
      std::printf("%-8s checked against the scalar twin: %s\n", table->name, failures ? "WRONG" : "same bits");
    }
    if (failures) return 1;
  }
  const bool generic_asked = options.isa == "generic";
  for (const KernelTable* table : tables) {
    if (std::strcmp(table->name, "generic") == 0 && !generic_asked) continue;  // it takes long
    if (options.wants("quant")) time_quantize(*table);
    if (options.wants("gemm"))
      for (const FormatOps& format : formats) time_gemm(*table, format);
  }
  if (options.wants("gemv")) {
    // More than any last-level cache; the contents are of no matter to the time, except that NaN and denormals must not slow it.
    const size_t bytes = size_t{512} << 20;
    Guarded memory(bytes);
    for (const FormatOps& format : formats) {
      const int64_t n_blocks = (int64_t{1} << 20) / format.bytes;
      fill_weights(format, memory.as<uint8_t>(), n_blocks);
      const size_t piece = static_cast<size_t>(n_blocks * format.bytes);
      for (size_t at = piece; at < bytes; at += piece)
        std::memcpy(memory.as<uint8_t>() + at, memory.as<uint8_t>(), std::min(piece, bytes - at));
      for (const KernelTable* table : tables)
        if (std::strcmp(table->name, "generic") != 0 || generic_asked) time_gemv(*table, format, memory.as<uint8_t>(), bytes);
    }
  }
  return 0;
}
