// Adapters (LoRA): low-rank factors by the matrix that they change, kept beside the weights for the backend's side products.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "model/weights.h"

namespace kimi {

// What an adapter adds to one matrix of the network, on the host: b^T (a x).
struct AdapterFactors {
  std::string name;  // of the matrix: "blk.0.attn_q.weight"; the key, query, value, gate and up parts of joined tensors are apart
  int64_t index = 0;  // in its stack (experts, heads)
  int64_t rank = 0, rows = 0, cols = 0;
  const float* a = nullptr;  // [rank, cols]
  const float* b = nullptr;  // [rank, rows], scaled
};

// The adapters of one model, which stay as long as it does.
class Adapters {
 public:
  int32_t size() const { return n_; }
  uint64_t bytes() const { return bytes_; }  // of all factors
  // Copies the factors and shows them to the weights. -> the new adapter. Throws Error(bad_model_file, "lora.module" or
  // "lora.shape"), after which nothing has changed.
  int32_t add(Backend& backend, const std::vector<AdapterFactors>& changes, TextWeights* text, VisionWeights* vision);

 private:
  AlignedBuffer<float>& copy_of(const float* from, int64_t n);
  int32_t n_ = 0;
  uint64_t bytes_ = 0;
  std::deque<SideProducts> sides_;  // of the matrices that any adapter changes
  std::deque<AlignedBuffer<float>> factors_;
};

}  // namespace kimi
