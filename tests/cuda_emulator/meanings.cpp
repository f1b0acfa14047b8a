// What the instructions in primitives.h mean, by the PTX ISA's own description of them. Compiled with optimisation and never
// instrumented, whatever the kernels are.
#include <cmath>
#include <cstring>

#include "cuda_emulator/state.h"

namespace emu {
namespace {

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Every lane brings words; the last one to come calls combine(in, out) for all of them.
template <int n_in, int n_out, typename Combine>
void exchange(const char* what, const uint32_t (&in)[n_in], uint32_t (&out)[n_out], const Combine& combine, const Where& where) {
  const int lane = current->lane;
  Meeting& meeting = arrive(what, where);
  for (int i = 0; i < n_in; ++i) meeting.in[lane].w[i] = in[i];
  if (is_last()) {
    combine(meeting.in, meeting.out);
    depart();
  } else {
    rest(where);
  }
  for (int i = 0; i < n_out; ++i) out[i] = meeting.out[lane].w[i];
}

// d [16, 8] = a [16, 16] b [16, 8] + c from and to fragments; decode: 16 bits -> float
template <typename Decode>
void multiply_16816(const Words* in, Words* out, const Decode& decode) {
  float a[16][16], b[16][8];
  double sum[16][8];
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, pair = l % 4 * 2;
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h)
        a[group + r % 2 * 8][pair + r / 2 * 8 + h] = decode(static_cast<uint16_t>(in[l].w[r] >> (16 * h)));
    for (int r = 0; r < 2; ++r)
      for (int h = 0; h < 2; ++h) b[pair + r * 8 + h][group] = decode(static_cast<uint16_t>(in[l].w[4 + r] >> (16 * h)));
    for (int r = 0; r < 4; ++r) sum[group + r / 2 * 8][pair + r % 2] = static_cast<double>(float_of(in[l].w[6 + r]));
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) sum[i][j] += static_cast<double>(a[i][k] * b[k][j]);  // products are exact in float
  for (int l = 0; l < 32; ++l)
    for (int r = 0; r < 4; ++r) {
      const double exact = sum[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2];
      float d = static_cast<float>(exact);
      if (options.truncate_sums && std::fabs(static_cast<double>(d)) > std::fabs(exact)) d = std::nextafter(d, 0.0f);
      out[l].w[r] = bits_of(d);
    }
  ++counters.mma;
}

template <typename Decode>
void multiply(const char* what, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Decode& decode,
              const Where& where) {
  const uint32_t in[10] = {a[0], a[1], a[2], a[3], b0, b1, bits_of(d[0]), bits_of(d[1]), bits_of(d[2]), bits_of(d[3])};
  uint32_t out[4];
  exchange(what, in, out, [&](const Words* i, Words* o) { multiply_16816(i, o, decode); }, where);
  for (int r = 0; r < 4; ++r) d[r] = float_of(out[r]);
}

}  // namespace

float float_from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  if ((bits & 0x7c00) == 0x7c00) return float_of(sign | 0x7f800000 | magnitude);
  return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));
}
uint16_t f16_from_float(float value) {
  const uint32_t u = bits_of(value), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return 0x7fff;                                 // what cvt makes of NaN
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
  if (a < 0x38800000) return static_cast<uint16_t>(sign | (bits_of(float_of(a) + 0.5f) - 0x3f000000));
  return static_cast<uint16_t>(sign | ((a + 0xfff + ((a >> 13) & 1) - 0x38000000) >> 13));
}
uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return out;
}
float fused(float a, float b, float c) { return std::fma(a, b, c); }
float exp2_fast(float x) { return std::exp2(x); }
int dot4(uint32_t a, uint32_t b, int c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}

uint32_t shuffle_xor(uint32_t value, int mask, const Where& where) {
  const uint32_t in[2] = {value, static_cast<uint32_t>(mask)};
  uint32_t out[1];
  exchange(
      "shuffle_xor", in, out,
      [](const Words* i, Words* o) {
        for (uint32_t l = 0; l < 32; ++l) o[l].w[0] = i[(l ^ i[l].w[1]) & 31].w[0];
      },
      where);
  return out[0];
}
uint32_t shuffle(uint32_t value, int lane, const Where& where) {
  const uint32_t in[2] = {value, static_cast<uint32_t>(lane)};
  uint32_t out[1];
  exchange(
      "shuffle", in, out,
      [](const Words* i, Words* o) {
        for (int l = 0; l < 32; ++l) o[l].w[0] = i[i[l].w[1] & 31].w[0];
      },
      where);
  return out[0];
}
uint32_t ballot(bool predicate, const Where& where) {
  const uint32_t in[1] = {predicate};
  uint32_t out[1];
  exchange(
      "ballot", in, out,
      [](const Words* i, Words* o) {
        uint32_t bits = 0;
        for (int l = 0; l < 32; ++l) bits |= i[l].w[0] << l;
        for (int l = 0; l < 32; ++l) o[l].w[0] = bits;
      },
      where);
  return out[0];
}
void warp_barrier(const Where& where) {
  const uint32_t in[1] = {0};
  uint32_t out[1];
  exchange("a barrier of the warp", in, out, [](const Words*, Words*) { join_warp(*fiber()->home, fiber()->warp); }, where);
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, const Where& where) {
  note(Access::read, row, 16, where);
  uint32_t in[2];
  std::memcpy(in, &row, 8);
  exchange(
      transposed ? "load_matrices, transposed" : "load_matrices", in, r,
      [&](const Words* i, Words* o) {
        for (int matrix = 0; matrix < 4; ++matrix) {
          const void* rows[8];
          uint16_t m[8][8];
          int worst = 0, seen[8] = {};
          for (int k = 0; k < 8; ++k) {
            std::memcpy(&rows[k], i[matrix * 8 + k].w, 8);
            std::memcpy(m[k], rows[k], 16);
            worst = std::max(worst, ++seen[reinterpret_cast<uintptr_t>(rows[k]) / 16 % 8]);  // eight groups of four banks
          }
          ++counters.ldmatrix_rows;
          counters.ldmatrix_phases += static_cast<unsigned>(worst);
          for (int l = 0; l < 32; ++l) {
            const int a = l / 4, b = l % 4 * 2;
            o[l].w[matrix] = transposed ? m[b][a] | static_cast<uint32_t>(m[b + 1][a]) << 16
                                        : m[a][b] | static_cast<uint32_t>(m[a][b + 1]) << 16;
          }
        }
      },
      where);
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Where& where) {
  multiply("mma_bf16", d, a, b0, b1, [](uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }, where);
}
void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Where& where) {
  multiply("mma_f16", d, a, b0, b1, [](uint16_t bits) { return float_from_f16(bits); }, where);
}

// a [16, 32], b [32, 8], signed bytes; sums are exact
void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Where& where) {
  uint32_t in[10] = {a[0], a[1], a[2], a[3], b0, b1}, out[4];
  for (int r = 0; r < 4; ++r) in[6 + r] = static_cast<uint32_t>(d[r]);
  exchange(
      "mma_s8", in, out,
      [](const Words* i, Words* o) {
        int32_t x[16][32], y[32][8], sum[16][8] = {};
        for (int l = 0; l < 32; ++l) {
          const int group = l / 4, four = l % 4 * 4;
          for (int r = 0; r < 4; ++r)
            for (int k = 0; k < 4; ++k) x[group + r % 2 * 8][four + r / 2 * 16 + k] = static_cast<int8_t>(i[l].w[r] >> (8 * k));
          for (int r = 0; r < 2; ++r)
            for (int k = 0; k < 4; ++k) y[four + r * 16 + k][group] = static_cast<int8_t>(i[l].w[4 + r] >> (8 * k));
        }
        for (int m = 0; m < 16; ++m)
          for (int k = 0; k < 32; ++k)
            for (int n = 0; n < 8; ++n) sum[m][n] += x[m][k] * y[k][n];
        for (int l = 0; l < 32; ++l)
          for (int r = 0; r < 4; ++r)
            o[l].w[r] = i[l].w[6 + r] + static_cast<uint32_t>(sum[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2]);
        ++counters.mma;
      },
      where);
  for (int r = 0; r < 4; ++r) d[r] = static_cast<int>(out[r]);
}

}  // namespace emu
