// What the tests of the CUDA backend share: random numbers and weights, memory of any backend, and comparisons.
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_options.h"
#include "backend/cuda/cuda_backend.h"
#include "base/f16.h"
#include "cuda_emulator/emu.h"

namespace kimi::test {

constexpr emu::Order kOrders[] = {emu::Order::forward, emu::Order::backward, emu::Order::random};
inline const char* name_of(emu::Order order) {
  return order == emu::Order::forward ? "forward" : order == emu::Order::backward ? "backward" : "random";
}

inline std::vector<float> normals(size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(engine);
  return values;
}

// || got - want || / || want ||; infinite where a number is none.
inline double error_of(const std::vector<float>& got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    if (!(d == d)) return INFINITY;
    difference += d * d;
    size += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  return std::sqrt(difference / size);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Where the f16 numbers of a block lie.
inline std::vector<int> halves_of(quant::Type type) {
  using enum quant::Type;
  switch (type) {
    case Q4_1:
    case Q5_1:
    case Q4_K:
    case Q5_K:
      return {0, 2};
    case Q2_K:
      return {80, 82};
    case Q3_K:
      return {108};
    case Q6_K:
      return {208};
    case MXFP4:
      return {};
    default:
      return {0};
  }
}

// Weights of a type on the host, [count][rows, cols]: normal floats, or blocks of random bytes with scales of a usual size.
struct HostMatrix {
  std::vector<uint8_t> bytes;
  Matrix view;
  HostMatrix(quant::Type type, int64_t rows, int64_t cols, unsigned seed, int64_t count = 1) {
    const quant::Format& format = quant::format_of(type);
    view.type = type;
    view.rows = rows;
    view.cols = cols;
    view.count = count;
    view.row_bytes = format.row_bytes(cols);
    view.stack_bytes = rows * view.row_bytes;
    bytes.resize(static_cast<size_t>(count * view.stack_bytes));
    view.data = bytes.data();
    if (format.is_float()) {
      fill_floats(normals(static_cast<size_t>(count * rows * cols), seed, 1.0f / std::sqrt(static_cast<float>(cols))));
      return;
    }
    std::mt19937 engine(seed);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(engine());
    const auto block_bytes = static_cast<size_t>(format.block_bytes);
    for (size_t block = 0; block < bytes.size(); block += block_bytes) {
      for (const int at : halves_of(type)) {
        const uint16_t half =
            f16_from_f32((0.001f + 0.00001f * static_cast<float>(engine() % 100)) * (engine() % 2 ? 1.0f : -1.0f));
        std::memcpy(&bytes[block + static_cast<size_t>(at)], &half, 2);
      }
      if (type == quant::Type::MXFP4) bytes[block] = static_cast<uint8_t>(118 + engine() % 8);
    }
  }

 private:
  void fill_floats(const std::vector<float>& values) {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = view.type == quant::Type::F16 ? f16_from_f32(values[i]) : bf16_from_f32(values[i]);
      if (view.type == quant::Type::F32)
        std::memcpy(&bytes[4 * i], &values[i], 4);
      else
        std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
};

// A backend and memory on it that lives as long as this.
struct On {
  explicit On(Backend& b) : backend(b) {}
  Backend& backend;
  std::vector<Buffer> kept{};

  float* room(int64_t n) {
    kept.push_back(backend.allocate(static_cast<size_t>(n) * sizeof(float)));
    return kept.back().floats();
  }
  float* up(const std::vector<float>& host) {
    float* to = room(static_cast<int64_t>(host.size()));
    backend.upload(to, host.data(), static_cast<int64_t>(host.size() * sizeof(float)));
    return to;
  }
  const float* adopt(const std::vector<float>& host) {
    kept.push_back(backend.adopt(host.data(), static_cast<int64_t>(host.size())));
    return kept.back().floats();
  }
  std::vector<float> down(const float* x, int64_t n) {
    std::vector<float> host(static_cast<size_t>(n));
    backend.download(host.data(), x, n * static_cast<int64_t>(sizeof(float)));
    return host;
  }
  Matrix product(const HostMatrix& w) { return backend.prepare(w.view, Use::product); }
};

inline std::unique_ptr<Backend> cpu_twin(bool float_activations = false) {
  CpuOptions options;
  options.n_threads = 1;
  options.float_activations = float_activations;
  return make_cpu_backend(options);
}
inline std::unique_ptr<Backend> emulated(bool float_activations = false) {
  cuda::CudaOptions options;
  options.n_threads = 1;
  options.float_activations = float_activations;
  return cuda::make_cuda_backend(options);
}

// What `run` gives on the CPU beside what it gives in the emulator under every order, which has to be the same bits.
struct Both {
  std::vector<float> cpu, cuda;
  double error() const { return error_of(cuda, cpu); }
};
template <typename Run>
Both on_both(const Run& run, bool float_activations = false) {
  Both both;
  both.cpu = run(*cpu_twin(float_activations));
  for (const emu::Order order : kOrders) {
    emu::options.order = order;
    const std::vector<float> got = run(*emulated(float_activations));
    CAPTURE(name_of(order));
    if (!both.cuda.empty()) CHECK(same_bits(got, both.cuda));
    both.cuda = got;
  }
  emu::options = {};
  CHECK(emu::device_bytes() == 0);
  return both;
}

}  // namespace kimi::test
