// The parts of the avx512 table that are not the float loops, one translation unit each.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu::avx512 {

constexpr int kPanelLanes = 32;

void fill_gemv_q8(KernelTable* table);    // int8_gemv.cpp
void fill_pack_q8(KernelTable* table);    // int8_pack.cpp
void fill_latent_q8(KernelTable* table);  // latent_q8.cpp
void fill_bf16(KernelTable* table);       // bf16.cpp
// int8_gemm.cpp
void gemm_panel_q8(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride);

}  // namespace kimi::cpu::avx512
