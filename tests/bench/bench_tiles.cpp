// What AMX tiles could do for the products of this model: rates of single instructions, what float arithmetic costs beside them,
// and two trial kernels on the layouts of kernel_table.h, checked against plain loops before they are timed. What came of it
// is the instruction set amx, for bf16 alone; docs/experiments.md says why.
//
//   bench_tiles [seconds=0.2]
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "base/aligned_buffer.h"
#include "base/f16.h"
#include "settings.h"

using namespace kimi;
using cpu::Q8Block;

namespace {

double seconds_each = 0.2;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class F>
double best_seconds(F&& call) {
  double best = 1e30;
  const double end = now() + seconds_each;
  for (int i = 0; i < 3 || now() < end; ++i) {
    const double start = now();
    call();
    best = std::min(best, now() - start);
  }
  return best;
}

// By a chain of multiplications, which take three cycles each.
double cycles_a_second() {
  constexpr int kLoops = 20000;
  uint64_t x = 1;
  const double seconds = best_seconds([&] {
    for (int i = 0; i < kLoops; ++i) asm volatile("imul %0, %0\nimul %0, %0\nimul %0, %0\nimul %0, %0" : "+r"(x));
  });
  return 12.0 * kLoops / seconds;
}

// Tiles 0 to 3: sums. 4 and 5: `rows` rows of activations. 6 and 7: weights of `bytes` elements' bytes in 16 columns.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

void configure(int rows, int bytes) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : bytes / 4);
    config.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? bytes : 64);
  }
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

// ---- single instructions -------------------------------------------------------------------------------------------

alignas(4096) uint8_t memory[1 << 16];
alignas(64) int32_t sums[32][16][16];

void float_ops() {  // 48 fused multiply-adds on 24 registers
  asm volatile(
      ".rept 2\n.irp r,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24\n"
      "vfmadd231ps %%zmm0, %%zmm0, %%zmm\\r\n.endr\n.endr" ::
          : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
            "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24");
}
void integer_ops() {  // 48 additions
  asm volatile(
      ".rept 2\n.irp r,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24\n"
      "vpaddd %%zmm0, %%zmm\\r, %%zmm\\r\n.endr\n.endr" ::
          : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
            "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24");
}
void load_a(int i) { _tile_loadd(4, memory + i % 16 * 64, 2816); }
void load_b(int i) { _tile_loadd(6, memory + i % 16 * 1024, 128); }
void store(int i) { _tile_stored(0, sums[i % 32], 64); }

void time_instructions(int rows, int bytes, double hz) {
  constexpr int kLoops = 400;
  configure(rows, bytes);
  const auto time = [&](const char* what, auto body) {
    const double seconds = best_seconds([&] {
      for (int i = 0; i < kLoops; ++i) body(i);
    });
    std::printf("  %-32s %5.1f cycles\n", what, seconds * hz / kLoops);
  };
  std::printf("tiles of %d rows, %d bytes of the sum's length\n", rows, bytes);
  time("four times tdpbssd", [](int) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 6);
    _tile_dpbssd(2, 4, 6);
    _tile_dpbssd(3, 4, 6);
  });
  time("load of activations", load_a);
  time("load of weights", load_b);
  time("store of sums", store);
  time("48 float operations", [](int) { float_ops(); });
  time("48 float operations, a load", [](int i) { float_ops(), load_a(i); });
  time("48 integer operations", [](int) { integer_ops(); });
  time("48 integer operations, a load", [](int i) { integer_ops(), load_a(i); });
  _tile_release();
}

// ---- int8, scales a group: 12 tokens x 32 weight rows, sums in registers -----------------------------------------------

constexpr int kLanes = 32, kTokens = 12;

// The intrinsics take the numbers of tiles literally. Groups take turns with two sets.
#define KIMI_MULTIPLY_GROUP(a, sum0, sum1) \
  _tile_loadd(a, from, 64 * x_row);        \
  _tile_zero(sum0);                        \
  _tile_zero(sum1);                        \
  _tile_loadd(6, q, 4 * kLanes);           \
  _tile_dpbssd(sum0, a, 6);                \
  _tile_stored(sum0, dots[g % 2][0], 64);  \
  _tile_loadd(7, q + 64, 4 * kLanes);      \
  _tile_dpbssd(sum1, a, 7);                \
  _tile_stored(sum1, dots[g % 2][1], 64);

// The products of a group are added up in floats while the tiles multiply the next one.
template <int group, bool has_min>
void int8_tile(const cpu::PanelQ8& panel, const Q8Block* x, int64_t x_row, float* out) {
  __m512 acc[kTokens][2] = {};
  alignas(64) int32_t dots[2][2][16][16];
  const int64_t n_groups = panel.k / group;
  const auto multiply = [&](int64_t g) {
    const int8_t* from = x[g * group / 32].q + g * group % 32;
    const uint8_t* q = panel.q + g * group * kLanes;
    if (g % 2) {
      KIMI_MULTIPLY_GROUP(5, 2, 3)
    } else {
      KIMI_MULTIPLY_GROUP(4, 0, 1)
    }
  };
  multiply(0);
  for (int64_t g = 0; g < n_groups; ++g) {
    if (g + 1 < n_groups) multiply(g + 1);
    const float *scale = panel.scale + g * kLanes, *min = panel.min + g * kLanes;
    const __m512 scale0 = _mm512_loadu_ps(scale), scale1 = _mm512_loadu_ps(scale + 16);
    const __m512 min0 = _mm512_loadu_ps(min), min1 = _mm512_loadu_ps(min + 16);
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      const Q8Block& block = x[t * x_row + g * group / 32];
      const __m512 xs = _mm512_set1_ps(block.scale);
      const auto& dot = dots[g % 2];
      acc[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dot[0][t])), _mm512_mul_ps(scale0, xs), acc[t][0]);
      acc[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dot[1][t])), _mm512_mul_ps(scale1, xs), acc[t][1]);
      if (has_min) {
        const __m512 sum = _mm512_set1_ps(group == 32 ? block.sum : block.half_sum[g % 2]);
        acc[t][0] = _mm512_fnmadd_ps(min0, sum, acc[t][0]);
        acc[t][1] = _mm512_fnmadd_ps(min1, sum, acc[t][1]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(out + t * kLanes + 16 * v, acc[t][v]);
}

template <int group, bool has_min>
bool time_int8() {
  constexpr int64_t k = 2048, n = 48;
  std::mt19937 random(1);
  AlignedBuffer<uint8_t> q;
  AlignedBuffer<float> scale, min, out;
  AlignedBuffer<Q8Block> x;
  q.resize(k * kLanes), scale.resize(k / group * kLanes), min.resize(k / group * kLanes), x.resize(n * k / 32),
      out.resize(n * kLanes);
  for (int64_t i = 0; i < k * kLanes; ++i) q.data()[i] = static_cast<uint8_t>(random());
  for (int64_t i = 0; i < k / group * kLanes; ++i)
    scale.data()[i] = 1e-3f * static_cast<float>(random() % 1000), min.data()[i] = scale.data()[i];
  for (int64_t i = 0; i < n * k / 32; ++i) {
    Q8Block block{};
    for (int8_t& v : block.q) v = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
    block.scale = 0.01f, block.sum = 0.5f, block.half_sum[0] = 0.25f, block.half_sum[1] = 0.75f;
    x.data()[i] = block;
  }
  const cpu::PanelQ8 panel{q.data(), scale.data(), min.data(), 0, 127, group, has_min, k};
  configure(kTokens, group);
  const auto run = [&] {
    for (int64_t j = 0; j < n; j += kTokens)
      int8_tile<group, has_min>(panel, x.data() + j * (k / 32), k / 32, out.data() + j * kLanes);
  };
  run();
  bool right = true;
  for (int64_t j = 0; j < n; j += 5)
    for (int lane = 0; lane < kLanes; ++lane) {
      float want = 0;
      for (int64_t g = 0; g < k / group; ++g) {
        const Q8Block& block = x.data()[j * (k / 32) + g * group / 32];
        int32_t dot = 0;
        for (int64_t i = g * group; i < (g + 1) * group; ++i)
          dot += static_cast<int8_t>(q.data()[(i / 4 * kLanes + lane) * 4 + i % 4]) * block.q[i % 32];
        const int64_t at = g * kLanes + lane;
        want = std::fma(static_cast<float>(dot), scale.data()[at] * block.scale, want);
        if (has_min) want = std::fma(-min.data()[at], group == 32 ? block.sum : block.half_sum[g % 2], want);
      }
      right &= want == out.data()[j * kLanes + lane];
    }
  std::printf("int8, groups of %d%s, 48 tokens: %.0f GOPS, %s\n", group, has_min ? ", with a minimum" : "",
              2.0 * n * k * kLanes / best_seconds(run) / 1e9, right ? "the bits of the tables" : "WRONG");
  _tile_release();
  return right;
}

// ---- bf16: no scales, so tiles keep their sums -----------------------------------------------------------------------

// a [m, k] times b [k / 2, 32, 2]; m a multiple of 32, k of 32.
void bf16_gemm(const uint16_t* a, const uint16_t* b, int64_t k, int64_t m, float* out) {
  for (int64_t i = 0; i < m; i += 32) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < k; c += 32) {
      _tile_loadd(4, a + i * k + c, 2 * k);
      _tile_loadd(5, a + (i + 16) * k + c, 2 * k);
      _tile_loadd(6, b + c * kLanes, 4 * kLanes);
      _tile_loadd(7, b + c * kLanes + 32, 4 * kLanes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out + i * kLanes, 4 * kLanes);
    _tile_stored(1, out + i * kLanes + 16, 4 * kLanes);
    _tile_stored(2, out + (i + 16) * kLanes, 4 * kLanes);
    _tile_stored(3, out + (i + 16) * kLanes + 16, 4 * kLanes);
  }
}

bool time_bf16() {
  constexpr int64_t k = 1152, m = 128;
  std::mt19937 random(1);
  AlignedBuffer<uint16_t> a, b;
  AlignedBuffer<float> out;
  a.resize(m * k), b.resize(k * kLanes), out.resize(m * kLanes);
  const auto number = [&] { return static_cast<uint16_t>(0x3f80 | (random() & 0x807f)); };  // 1 to 2, of either sign
  const auto value = [](uint16_t bits) { return f32_from_bits(static_cast<uint32_t>(bits) << 16); };
  for (int64_t i = 0; i < m * k; ++i) a.data()[i] = number();
  for (int64_t i = 0; i < k * kLanes; ++i) b.data()[i] = number();
  configure(16, 64);
  const auto run = [&] { bf16_gemm(a.data(), b.data(), k, m, out.data()); };
  run();
  bool right = true;
  for (int64_t i = 0; i < m; ++i)
    for (int lane = 0; lane < kLanes; ++lane) {
      double want = 0, size = 0;
      for (int64_t c = 0; c < k; ++c) {
        const double product =
            static_cast<double>(value(a.data()[i * k + c])) * value(b.data()[(c / 2 * kLanes + lane) * 2 + c % 2]);
        want += product, size += std::fabs(product);
      }
      right &=
          std::fabs(out.data()[i * kLanes + lane] - want) <= (k + 2) * 0x1p-24 * size;  // as in tests/core/test_kernels_bf16.py
    }
  std::printf("bf16, 128 x 1152 by 32 columns: %.0f GFLOPS, %s\n", 2.0 * m * k * kLanes / best_seconds(run) / 1e9,
              right ? "within the bound of float sums" : "WRONG");
  _tile_release();
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  if (!bench::read_settings(argc, argv, {{"seconds", &seconds_each}})) return 2;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    std::perror("this processor or kernel lends no tiles");
    return 1;
  }
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const double hz = cycles_a_second();
  std::printf("%.2f GHz\n", hz / 1e9);
  time_instructions(16, 32, hz);
  time_instructions(12, 32, hz);
  const bool right[] = {time_int8<32, true>(), time_int8<32, false>(), time_int8<16, false>(), time_bf16()};
  return std::all_of(std::begin(right), std::end(right), [](bool r) { return r; }) ? 0 : 1;
}
