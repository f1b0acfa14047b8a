// Memory, and the operations on single rows: no products.
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"

namespace kimi::cpu {
namespace {

struct Own final : Buffer::Memory {
  explicit Own(size_t n) : block(n) {
    data = block.data();
    bytes = n;
  }
  AlignedBuffer<char> block;
};

}  // namespace

Buffer CpuBackend::allocate(size_t bytes) { return Buffer(std::make_unique<Own>(bytes)); }

Buffer CpuBackend::adopt(const float* host, int64_t n) {
  auto borrowed = std::make_unique<Buffer::Memory>();
  borrowed->data = const_cast<float*>(host);
  borrowed->bytes = static_cast<size_t>(n) * sizeof(float);
  return Buffer(std::move(borrowed));
}

void CpuBackend::copy(void* out, const void* x, int64_t bytes) { std::memcpy(out, x, static_cast<size_t>(bytes)); }

void CpuBackend::clear(void* out, int64_t bytes) { std::memset(out, 0, static_cast<size_t>(bytes)); }

void CpuBackend::embed(const Matrix& table, const Step& step, float* out) {
  for (const Step::Tokens& tokens : step.tokens()) {
    const int32_t* ids = step.ids().data() + tokens.first;
    float* rows = out + tokens.row0 * table.cols;
    for_rows(tokens.n, table.cols, [&](int64_t i) {
      kernels_.decode_row[static_cast<int>(table.type)](table.data + ids[i] * table.row_bytes, rows + i * table.cols, table.cols);
    });
  }
}

void CpuBackend::gather_rows(const Step& step, const float* x, int64_t dim, float* out) {
  for (const Step::Slice& slice : step.slices())
    std::memmove(out + slice.wanted0 * dim, x + (slice.row0 + slice.n - slice.n_wanted) * dim,
                 static_cast<size_t>(slice.n_wanted * dim) * sizeof(float));
}

void CpuBackend::rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) {
  for_rows(n, dim, [&](int64_t i) { kernels_.rms_norm(x + i * dim, weight, eps, dim, out + i * dim); });
}

void CpuBackend::layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim,
                            float* out) {
  for_rows(n, dim, [&](int64_t i) { kernels_.layer_norm(x + i * dim, weight, bias, eps, dim, out + i * dim); });
}

void CpuBackend::add(const float* x, int64_t n, float* out) {
  constexpr int64_t kRow = 4096;
  for_rows((n + kRow - 1) / kRow, kRow,
           [&](int64_t i) { kernels_.add_scaled(x + i * kRow, 1.0f, std::min(kRow, n - i * kRow), out + i * kRow); });
}

void CpuBackend::patches(const PatchArgs& args) {
  float value[3][256];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) value[c][v] = (static_cast<float>(v) / 255.0f - args.mean[c]) / args.std[c];
  const int64_t p = args.patch_size, grid_w = args.width / p, floats = 3 * p * p;
  for_rows(args.height / p * grid_w, floats, [&](int64_t i) {
    const int64_t row = i / grid_w, column = i % grid_w;
    float* patch = args.out + i * floats;
    for (int64_t y = 0; y < p; ++y) {
      const uint8_t* source = args.pixels + ((row * p + y) * args.width + column * p) * 3;
      for (int64_t x = 0; x < p; ++x)
        for (int64_t c = 0; c < 3; ++c) patch[(c * p + y) * p + x] = value[c][source[3 * x + c]];
    }
  });
}

void CpuBackend::merge_rows(const MergeArgs& args) {
  const int64_t merge = args.merge, merged = merge * merge * args.dim;
  for_rows(args.grid_h * args.grid_w, args.dim, [&](int64_t i) {
    const int64_t row = i / args.grid_w, column = i % args.grid_w;
    const int64_t block = row / merge * (args.grid_w / merge) + column / merge, part = row % merge * merge + column % merge;
    std::memcpy(args.out + block * merged + part * args.dim, args.x + i * args.dim,
                static_cast<size_t>(args.dim) * sizeof(float));
  });
}

}  // namespace kimi::cpu
