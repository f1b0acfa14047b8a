// What the avx2-vnni table replaces in that of avx2, one translation unit each.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu::avx2_vnni {

void fill_gemv_q8(KernelTable* table);  // int8_gemv.cpp
void fill_gemm_q8(KernelTable* table);  // int8_gemm.cpp

}  // namespace kimi::cpu::avx2_vnni
