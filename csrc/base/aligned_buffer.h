// A move-only block of zeroed memory, aligned to 64 bytes. Owns bytes; knows nothing of what they mean.
#pragma once
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/pages.h"

namespace kimi {

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t count) { resize(count); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { release(); }

  // Room for `count` elements; the old contents are lost when it has to grow. Grown memory is zeroed.
  void resize(size_t count) {
    if (!try_resize(count))
      fail(ErrorKind::out_of_memory, "memory.allocation",
           "could not allocate %.0f MiB: use a smaller context (n_ctx), a smaller picture or a smaller quantization",
           static_cast<double>(count) * sizeof(T) / (1 << 20));
  }
  // Whether the memory was there; if not, the buffer is empty.
  bool try_resize(size_t count) noexcept {
    if (count > capacity_) {
      release();
      if (count > (SIZE_MAX - 64) / sizeof(T)) return false;
      const size_t bytes = bytes_for(count);
      data_ = static_cast<T*>(bytes < kLargePage ? std::aligned_alloc(64, bytes) : take_pages(bytes));
      if (!data_) return false;
      if (bytes < kLargePage) std::memset(static_cast<void*>(data_), 0, bytes);
      capacity_ = count;
    }
    size_ = count;
    return true;
  }
  void release() noexcept {
    const size_t bytes = bytes_for(capacity_);
    bytes < kLargePage ? std::free(data_) : give_pages(data_, bytes);
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  T& operator[](size_t i) noexcept { return data_[i]; }
  const T& operator[](size_t i) const noexcept { return data_[i]; }

 private:
  static size_t bytes_for(size_t count) noexcept { return (count * sizeof(T) + 63) / 64 * 64; }
  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace kimi
