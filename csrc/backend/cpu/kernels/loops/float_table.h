// Fills the float half of a kernel table with the loops at W lanes and MR rows a tile.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/loops/attention.h"
#include "backend/cpu/kernels/loops/rows.h"

namespace kimi::cpu {
namespace {

template <int W, int MR>
void fill_float(KernelTable* table) {
  constexpr auto at = [](quant::Type type) { return static_cast<int>(type); };
  table->tile_lanes = 2 * W;
  table->gemm_f32 = gemm_f32<W, 2, MR>;
  table->transpose_panel = transpose_panel<W>;
  table->gemv_float[at(quant::Type::F32)] = gemv_float<W, ReadF32>;
  table->gemv_float[at(quant::Type::F16)] = gemv_float<W, ReadF16>;
  table->gemv_float[at(quant::Type::BF16)] = gemv_float<W, ReadBF16>;
  table->decode_row[at(quant::Type::F32)] = decode_float_row<W, ReadF32>;
  table->decode_row[at(quant::Type::F16)] = decode_float_row<W, ReadF16>;
  table->decode_row[at(quant::Type::BF16)] = decode_float_row<W, ReadBF16>;
  table->f32_from_f16_row = [](const uint16_t* x, int64_t n, float* out) { decode_float_row<W, ReadF16>(x, out, n); };
  table->f16_from_f32_row = f16_from_f32_row<W>;
  table->f32_from_q8_row = f32_from_q8_row<W>;
  table->attention_block = attention_block<W, MR>;
  table->rms_norm = rms_norm<W>;
  table->layer_norm = layer_norm<W>;
  table->silu_mul = silu_mul<W>;
  table->gelu_tanh = gelu_tanh<W>;
  table->gelu_erf = gelu_erf_row;
  table->rotate_pairs = rotate_pairs_row;
  table->add_scaled = add_scaled<W>;
}

}  // namespace
}  // namespace kimi::cpu
