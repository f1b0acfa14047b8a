// What operations work on: Buffer, a backend's memory and its owner; Matrix, a view of weights.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

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

// A weight matrix, or a stack of equal ones (experts, heads).
struct Matrix {
  quant::Type type = quant::Type::F32;
  const uint8_t* data = nullptr;
  int64_t rows = 0, cols = 0;  // out features, in features
  int64_t row_bytes = 0;
  int64_t count = 1;        // matrices in the stack
  int64_t stack_bytes = 0;  // from one to the next
  int32_t weight = -1;      // which of the model's weights it is, for an observer; -1: one that nobody asks for
  int32_t index = 0;        // of the first matrix, in that weight's stack
  explicit operator bool() const { return data != nullptr; }
  Matrix at(int64_t i) const {
    Matrix one = *this;
    one.data = data + i * stack_bytes;
    one.count = 1;
    one.index += static_cast<int32_t>(i);
    return one;
  }
};

}  // namespace kimi
