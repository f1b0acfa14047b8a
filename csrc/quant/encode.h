// Encoders: a row of floats into the blocks of a format, chosen for the instruction set. Owns the search for the scales that
// lose least; refuses to know files, tensors and threads. The bytes are the same on every instruction set.
#pragma once
#include <stdint.h>

#include "quant/format.h"

namespace kimi::quant {

// `n` elements of a row -> blocks; importance: what an error in each column weighs (finite, not negative), or nullptr. All
// elements finite. The published format leaves the choice of quants to the encoder.
using RowEncoder = void (*)(const float* row, const float* importance, void* blocks, int64_t n) noexcept;

struct Encoders {
  const char* name;
  RowEncoder encode[kMaxTypes];  // by Type; nullptr: the format is only read
  void (*widen_f16)(const void* row, float* out, int64_t n) noexcept;
  void (*widen_bf16)(const void* row, float* out, int64_t n) noexcept;
  bool (*all_finite)(const float* row, int64_t n) noexcept;
};

void fill_encoders_generic(Encoders* table);
void fill_encoders_avx2(Encoders* table);
void fill_encoders_avx512(Encoders* table);

// isa: as for choose_isa (base/isa.h), with its errors.
const Encoders& select_encoders(const char* isa);

bool has_encoder(Type type);
// Throws Error(unsupported) where there is none, which names those there are.
RowEncoder encoder_of(const Encoders& encoders, Type type);

}  // namespace kimi::quant
