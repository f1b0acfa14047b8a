// A move-only block of zeroed memory, aligned to 64 bytes. Owns bytes; knows nothing of what they mean.
#pragma once
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace kimi {

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t count) { resize(count); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), capacity_(std::exchange(other.capacity_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(data_); }

  // Room for `count` elements; the old contents are lost when it has to grow. Grown memory is zeroed.
  void resize(size_t count) {
    if (count > capacity_) {
      std::free(data_);
      data_ = nullptr;
      size_ = capacity_ = 0;
      if (count > (SIZE_MAX - 64) / sizeof(T)) out_of_memory(SIZE_MAX);
      const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (!data_) out_of_memory(bytes);
      std::memset(static_cast<void*>(data_), 0, bytes);
      capacity_ = count;
    }
    size_ = count;
  }
  void release() { *this = AlignedBuffer(); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  T& operator[](size_t i) noexcept { return data_[i]; }
  const T& operator[](size_t i) const noexcept { return data_[i]; }

 private:
  [[noreturn]] static void out_of_memory(size_t bytes) {
    fail(ErrorKind::out_of_memory, "memory.allocation",
         "could not allocate %zu MiB: use a smaller context (-c), a smaller picture or a smaller quantization", bytes >> 20);
  }
  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace kimi
