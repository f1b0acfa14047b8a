// The parts of the avx512-vnni table that are not the float loops, one translation unit each.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu::avx512_vnni {

constexpr int kPanelLanes = 32;

void fill_gemv_q8(KernelTable* table);    // int8_gemv.cpp
void fill_pack_q8(KernelTable* table);    // int8_pack.cpp
void fill_gemm_q8(KernelTable* table);    // int8_gemm.cpp
void fill_latent_q8(KernelTable* table);  // latent_q8.cpp

}  // namespace kimi::cpu::avx512_vnni
