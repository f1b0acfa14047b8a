// What operations work on: Buffer, a backend's memory and its owner; Matrix, a view of weights, with what adapters add to it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "quant/format.h"

namespace kimi {

// Memory of a backend's device, given back with the object. Its addresses mean something to that backend alone.
class Buffer {
 public:
  // How a backend keeps it.
  struct Memory {
    virtual ~Memory() = default;
    void* data = nullptr;
    size_t bytes = 0;
  };
  Buffer() = default;
  explicit Buffer(std::unique_ptr<Memory> memory) : memory_(std::move(memory)) {}

  uint8_t* data() const { return memory_ ? static_cast<uint8_t*>(memory_->data) : nullptr; }
  float* floats() const { return memory_ ? static_cast<float*>(memory_->data) : nullptr; }
  size_t bytes() const { return memory_ ? memory_->bytes : 0; }

 private:
  std::unique_ptr<Memory> memory_;
};

constexpr int32_t kNoAdapter = -1;

// What an adapter (LoRA) adds to the product of one matrix with x: b^T (a x), beside the matrix and in float whatever its type.
struct LowRank {
  int64_t rank = 0, rows = 0, cols = 0;
  const float* a = nullptr;  // [rank, cols]
  const float* b = nullptr;  // [rank, rows], scaled
};

// What each adapter of a model adds to a stack of matrices; rank 0: nothing.
class SideProducts {
 public:
  const LowRank* find(int32_t adapter, int64_t index) const {
    if (adapter < 0 || static_cast<size_t>(adapter) >= adapters_.size()) return nullptr;
    const std::vector<LowRank>& stack = adapters_[static_cast<size_t>(adapter)];
    if (static_cast<size_t>(index) >= stack.size()) return nullptr;
    const LowRank& found = stack[static_cast<size_t>(index)];
    return found.rank > 0 ? &found : nullptr;
  }
  LowRank& at(int32_t adapter, int64_t index, int64_t count) {
    if (adapters_.size() <= static_cast<size_t>(adapter)) adapters_.resize(static_cast<size_t>(adapter) + 1);
    std::vector<LowRank>& stack = adapters_[static_cast<size_t>(adapter)];
    stack.resize(static_cast<size_t>(count));
    return stack[static_cast<size_t>(index)];
  }

 private:
  std::vector<std::vector<LowRank>> adapters_;  // [adapters, matrices of the stack]
};

// A weight matrix, or a stack of equal ones (experts, heads).
struct Matrix {
  quant::Type type = quant::Type::F32;
  const uint8_t* data = nullptr;
  int64_t rows = 0, cols = 0;  // out features, in features
  int64_t row_bytes = 0;
  int64_t count = 1;                    // matrices in the stack
  int64_t stack_bytes = 0;              // from one to the next
  int32_t weight = -1;                  // which of the model's weights it is, for an observer; -1: one that nobody asks for
  int32_t index = 0;                    // of the first matrix, in that weight's stack
  const SideProducts* sides = nullptr;  // nullptr: no adapter changes it
  explicit operator bool() const { return data != nullptr; }
  Matrix at(int64_t i) const {
    Matrix one = *this;
    one.data = data + i * stack_bytes;
    one.count = 1;
    one.index += static_cast<int32_t>(i);
    return one;
  }
  // What `adapter` adds to the first matrix; nullptr: nothing.
  const LowRank* side(int32_t adapter) const { return sides ? sides->find(adapter, index) : nullptr; }
};

}  // namespace kimi
