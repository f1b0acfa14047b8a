// The encoders of one instruction set, as a table.
#pragma once
#include "quant/encode.h"
#include "quant/encode/formats.h"

namespace kimi::quant {
namespace {

template <class Block, void (*encode_block)(const float*, Block*)>
void plain_blocks(const float* row, void* out, int64_t n) noexcept {
  auto* block = static_cast<Block*>(out);
  for (int64_t i = 0; i < n; i += 32) encode_block(row + i, block++);
}

void row_f32(const float* row, const float*, void* out, int64_t n) noexcept {
  if (n > 0) __builtin_memcpy(out, row, static_cast<size_t>(n) * 4);
}
void row_f16(const float* row, const float*, void* out, int64_t n) noexcept { plain_f16(row, out, n); }
void row_bf16(const float* row, const float*, void* out, int64_t n) noexcept { plain_bf16(row, out, n); }
void row_q8_0(const float* row, const float*, void* out, int64_t n) noexcept {
  plain_blocks<BlockQ8_0, plain_q8_0_block>(row, out, n);
}
void row_q4_0(const float* row, const float* importance, void* out, int64_t n) noexcept {
  importance ? encode_scaled_blocks<EncodeQ4_0>(row, importance, out, n) : plain_blocks<BlockQ4_0, plain_q4_0_block>(row, out, n);
}
void row_q5_0(const float* row, const float* importance, void* out, int64_t n) noexcept {
  importance ? encode_scaled_blocks<EncodeQ5_0>(row, importance, out, n) : plain_blocks<BlockQ5_0, plain_q5_0_block>(row, out, n);
}
void row_q4_1(const float* row, const float* importance, void* out, int64_t n) noexcept {
  importance ? encode_offset_blocks<EncodeQ4_1>(row, importance, out, n) : plain_blocks<BlockQ4_1, plain_q4_1_block>(row, out, n);
}
void row_q5_1(const float* row, const float* importance, void* out, int64_t n) noexcept {
  importance ? encode_offset_blocks<EncodeQ5_1>(row, importance, out, n) : plain_blocks<BlockQ5_1, plain_q5_1_block>(row, out, n);
}
void row_iq4_nl(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_scaled_blocks<EncodeIQ4_NL>(row, importance, out, n);
}
void row_mxfp4(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_mxfp4(row, importance, out, n);
}
void row_q2_k(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_offset_superblocks<EncodeQ2_K>(row, importance, out, n);
}
void row_q4_k(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_offset_superblocks<EncodeQ4_K>(row, importance, out, n);
}
void row_q5_k(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_offset_superblocks<EncodeQ5_K>(row, importance, out, n);
}
void row_q3_k(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_scaled_superblocks<EncodeQ3_K>(row, importance, out, n);
}
void row_q6_k(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_scaled_superblocks<EncodeQ6_K>(row, importance, out, n);
}
void row_iq4_xs(const float* row, const float* importance, void* out, int64_t n) noexcept {
  encode_scaled_superblocks<EncodeIQ4_XS>(row, importance, out, n);
}

void widen_f16(const void* row, float* out, int64_t n) noexcept {
  const auto* bytes = static_cast<const uint8_t*>(row);
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    __m128i halves;
    __builtin_memcpy(&halves, bytes + 2 * i, 16);
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
#endif
  for (; i < n; ++i) out[i] = load_f16(bytes + 2 * i);
}
void widen_bf16(const void* row, float* out, int64_t n) noexcept { decode_bf16(row, out, n); }

// Whether all elements are finite: adds up the exponents of 255, which the compiler turns into vector code.
bool all_finite(const float* row, int64_t n) noexcept {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= static_cast<uint32_t>((f32_to_bits(row[i]) & 0x7f800000) == 0x7f800000);
  return bad == 0;
}

KIMI_INLINE void fill_table(Encoders* table) {
  const auto set = [table](Type type, RowEncoder encoder) { table->encode[static_cast<uint32_t>(type)] = encoder; };
  set(Type::F32, row_f32);
  set(Type::F16, row_f16);
  set(Type::BF16, row_bf16);
  set(Type::Q8_0, row_q8_0);
  set(Type::Q4_0, row_q4_0);
  set(Type::Q4_1, row_q4_1);
  set(Type::Q5_0, row_q5_0);
  set(Type::Q5_1, row_q5_1);
  set(Type::Q2_K, row_q2_k);
  set(Type::Q3_K, row_q3_k);
  set(Type::Q4_K, row_q4_k);
  set(Type::Q5_K, row_q5_k);
  set(Type::Q6_K, row_q6_k);
  set(Type::IQ4_NL, row_iq4_nl);
  set(Type::IQ4_XS, row_iq4_xs);
  set(Type::MXFP4, row_mxfp4);
  table->widen_f16 = widen_f16;
  table->widen_bf16 = widen_bf16;
  table->all_finite = all_finite;
}

}  // namespace
}  // namespace kimi::quant
