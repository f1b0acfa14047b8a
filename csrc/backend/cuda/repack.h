// From the rows of a file to the planes of layout.h, on the host. Exact: what is read back from the planes are the numbers of the
// file's own decoder.
#pragma once
#include <cstdint>

#include "backend/tensor.h"

namespace kimi::cuda {

bool has_planes(quant::Type type);
int64_t plane_bytes(const Matrix& w);  // of one matrix of the stack
// One matrix; planes: plane_bytes(w), zeroed.
void repack(const Matrix& w, uint8_t* planes);

}  // namespace kimi::cuda
