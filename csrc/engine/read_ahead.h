// Reads a model's file ahead of its first use, in the order of the layers, while the first prompt is already computed.
// Owns background threads; changes no result.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace kimi {

class ReadAhead {
 public:
  struct Range {
    const uint8_t* data;  // in a mapping that outlives this object
    uint64_t size;
  };
  // Starts at once; does nothing when the ranges would not fit the memory that is free.
  explicit ReadAhead(const std::vector<Range>& ranges);
  ~ReadAhead();  // stops within one piece
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

 private:
  void run() noexcept;
  std::vector<Range> pieces_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::unique_ptr<std::thread>> threads_;
  int fork_generation_;
};

}  // namespace kimi
