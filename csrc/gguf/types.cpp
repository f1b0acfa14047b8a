#include "gguf/types.h"

#include "base/error.h"
#include "quant/format.h"

namespace kimi::gguf {
namespace {

// {0, 0}: ids 4, 5 (Q4_2, Q4_3), 31 to 33 (Q4_0_4_4, Q4_0_4_8, Q4_0_8_8) and 36 to 38 (IQ4_NL_4_4, ...) that GGUF gave up.
constexpr BlockSize kSizes[] = {
    {1, 4},     {1, 2},     {32, 18},   {32, 20},  {0, 0},    {0, 0},     // F32 F16 Q4_0 Q4_1 - -
    {32, 22},   {32, 24},   {32, 34},   {32, 40},                         // Q5_0 Q5_1 Q8_0 Q8_1
    {256, 84},  {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292},  // Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K
    {256, 66},  {256, 74},  {256, 98},  {256, 50},                        // IQ2_XXS IQ2_XS IQ3_XXS IQ1_S
    {32, 18},   {256, 110}, {256, 82},  {256, 136},                       // IQ4_NL IQ3_S IQ2_S IQ4_XS
    {1, 1},     {1, 2},     {1, 4},     {1, 8},    {1, 8},                // I8 I16 I32 I64 F64
    {256, 56},  {1, 2},     {0, 0},     {0, 0},    {0, 0},                // IQ1_M BF16 - - -
    {256, 54},  {256, 66},  {0, 0},     {0, 0},    {0, 0},                // TQ1_0 TQ2_0 - - -
    {32, 17},   {64, 36},   {128, 18},                                    // MXFP4 NVFP4 Q1_0
};
constexpr uint32_t kDefined = sizeof kSizes / sizeof kSizes[0];
static_assert(kDefined == 42);

}  // namespace

TypeStatus type_status(uint32_t type_id) {
  if (type_id >= kDefined) return TypeStatus::undefined;
  if (kSizes[type_id].elems == 0) return TypeStatus::removed;
  return quant::find_format(type_id) ? TypeStatus::readable : TypeStatus::unreadable;
}

BlockSize block_size(uint32_t type_id) {
  KIMI_DCHECK(type_id < kDefined && kSizes[type_id].elems != 0);
  return kSizes[type_id];
}

}  // namespace kimi::gguf
