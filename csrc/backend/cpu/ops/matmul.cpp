// Matrix products on the CPU: which chunks a product is cut into, for few and for many activation rows.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/ops/compute.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kTokenBlock = 128;                 // rows of activations that stay in the second-level cache
constexpr int64_t kDecodeBlock = 512;                // columns decoded at a time while a float panel is transposed
constexpr int64_t kPackedBytes = int64_t{24} << 20;  // of float panels that are packed before they are used

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Activations Activations::rows(int64_t first, int64_t count) const {
  Activations part = *this;
  part.n = count;
  part.x = x ? x + first * stride : nullptr;
  if (q8.blocks) part.q8.blocks = q8.blocks + first * (k / 32);
  return part;
}

void CpuBackend::for_rows(int64_t n, int64_t cost_per_row, const std::function<void(int64_t)>& body) {
  constexpr int64_t kWorthWaking = 32768;  // elements: below, one thread is done before another has woken up
  const int64_t per_chunk = std::max<int64_t>(1, kWorthWaking / std::max<int64_t>(1, cost_per_row));
  pool_.parallel_for(ceil_div(n, per_chunk), [&](int64_t chunk, int) {
    for (int64_t i = chunk * per_chunk; i < std::min(n, (chunk + 1) * per_chunk); ++i) body(i);
  });
}

void CpuBackend::quantize(Activations* x, AlignedBuffer<Q8Block>* buffer) {
  const int64_t row_blocks = x->k / 32;
  buffer->resize(static_cast<size_t>(x->n * row_blocks));
  x->q8 = {buffer->data(), x->k};
  for_rows(x->n, x->k, [&](int64_t i) { kernels_.quantize_row(x->x + i * x->stride, x->k, x->q8.blocks + i * row_blocks); });
}

// ---- few rows ----------------------------------------------------------------------------------------------------

// Row blocks of all products in one loop. A block is a share of what is left, so that the first ones are long streams and both
// ends of the loop stay short; while a thread is in its last rows it fetches the first of those that it will probably be given
// next.
void CpuBackend::multiply_few(const std::vector<Product>& products, const uint8_t* after) {
  constexpr int64_t kRowStep = 16, kSmallest = 48 << 10;
  struct Block {
    const Product* product;
    int64_t row0, n_rows;
    const uint8_t* data() const { return product->w.data + row0 * product->w.row_bytes; }
  };
  int64_t left = 0;  // bytes
  for (const Product& product : products) left += product.w.rows * product.w.row_bytes;
  std::vector<Block> blocks;
  for (const Product& product : products) {
    const int64_t row_bytes = std::max<int64_t>(1, product.w.row_bytes);
    for (int64_t row0 = 0; row0 < product.w.rows;) {
      const int64_t target = std::max(kSmallest, left / (3 * pool_.n_threads())) / row_bytes;
      int64_t n_rows = std::max<int64_t>(1, target / kRowStep) * kRowStep;
      if (row0 + n_rows + n_rows / 2 >= product.w.rows) n_rows = product.w.rows - row0;
      blocks.push_back({&product, row0, n_rows});
      row0 += n_rows;
      left -= n_rows * row_bytes;
    }
  }
  const auto n_blocks = static_cast<int64_t>(blocks.size());
  pool_.parallel_for(n_blocks, [&](int64_t chunk, int thread) {
    const Block& block = blocks[static_cast<size_t>(chunk)];
    const Product& product = *block.product;
    const Matrix& w = product.w;
    const int type = static_cast<int>(w.type);
    const int64_t next = chunk + pool_.n_threads();
    float* out = product.out + block.row0;
    if (uses_int8(w))
      kernels_.gemv_q8[type](block.data(), w.row_bytes, block.n_rows, product.x.q8, product.x.n, out, product.out_stride,
                             next < n_blocks ? blocks[static_cast<size_t>(next)].data() : after);
    else if (kernels_.gemv_float[type])
      kernels_.gemv_float[type](block.data(), w.row_bytes, block.n_rows, product.x.x, product.x.stride, w.cols, product.x.n, out,
                                product.out_stride);
    else
      multiply_decoded(w, block.row0, block.n_rows, product, &scratch_[static_cast<size_t>(thread)]);
  });
}

// Quantized rows with float activations: one row at a time is decoded.
void CpuBackend::multiply_decoded(const Matrix& w, int64_t row0, int64_t n_rows, const Product& product, ThreadScratch* scratch) {
  scratch->decoded.resize(static_cast<size_t>(w.cols));
  for (int64_t r = row0; r < row0 + n_rows; ++r) {
    kernels_.decode_row[static_cast<int>(w.type)](w.data + r * w.row_bytes, scratch->decoded.data(), w.cols);
    kernels_.gemv_float[static_cast<int>(quant::Type::F32)](scratch->decoded.data(), 0, 1, product.x.x, product.x.stride, w.cols,
                                                            product.x.n, product.out + r, product.out_stride);
  }
}

// ---- many rows ---------------------------------------------------------------------------------------------------

void CpuBackend::pack_float(const Matrix& w, int64_t row0, int64_t lanes, ThreadScratch* scratch, float* out) {
  const int64_t n_rows = std::min(lanes, w.rows - row0), k = w.cols;
  if (w.type == quant::Type::F32 && w.row_bytes % 4 == 0 && reinterpret_cast<uintptr_t>(w.data) % 4 == 0) {
    kernels_.transpose_panel(reinterpret_cast<const float*>(w.data + row0 * w.row_bytes), w.row_bytes / 4, n_rows, k, out);
    return;
  }
  const quant::Format& format = quant::format_of(w.type);
  scratch->decoded.resize(static_cast<size_t>(lanes * kDecodeBlock));
  for (int64_t k0 = 0; k0 < k; k0 += kDecodeBlock) {
    const int64_t n = std::min(kDecodeBlock, k - k0);
    for (int64_t r = 0; r < n_rows; ++r)
      kernels_.decode_row[static_cast<int>(w.type)](w.data + (row0 + r) * w.row_bytes + format.row_bytes(k0),
                                                    scratch->decoded.data() + r * kDecodeBlock, n);
    kernels_.transpose_panel(scratch->decoded.data(), kDecodeBlock, n_rows, n, out + k0 * lanes);
  }
}

Panel CpuBackend::pack(const Matrix& w, int64_t row0, int64_t slot, ThreadScratch* scratch) {
  Panel panel{};
  panel.is_q8 = uses_int8(w);
  panel.k = w.cols;
  panel.lanes = panel_lanes(w);
  const size_t elements = static_cast<size_t>(panel.k * panel.lanes);
  if (panel.is_q8) {
    scratch->panel_q[slot].resize(elements);
    scratch->panel_scale[slot].resize(elements / 16);
    scratch->panel_min[slot].resize(elements / 16);
    panel.q8.q = scratch->panel_q[slot].data();
    panel.q8.scale = scratch->panel_scale[slot].data();
    panel.q8.min = scratch->panel_min[slot].data();
    kernels_.pack_panel_q8[static_cast<int>(w.type)](w.data + row0 * w.row_bytes, w.row_bytes,
                                                     std::min(panel.lanes, w.rows - row0), w.cols, &panel.q8);
  } else {
    scratch->panel_f32[slot].resize(elements);
    pack_float(w, row0, panel.lanes, scratch, scratch->panel_f32[slot].data());
    panel.f32 = scratch->panel_f32[slot].data();
  }
  return panel;
}

void CpuBackend::multiply_panel(const Panel& panel, const Activations& x, const int32_t* rows, int64_t n, float* tile,
                                ThreadScratch* scratch) {
  if (panel.is_q8) {
    kernels_.gemm_panel_q8(panel.q8, x.q8, rows, n, tile, panel.lanes);
    return;
  }
  const float* a = x.x;
  int64_t a_row = x.stride;
  if (rows) {
    scratch->gathered.resize(static_cast<size_t>(n * panel.k));
    for (int64_t j = 0; j < n; ++j)
      std::memcpy(scratch->gathered.data() + j * panel.k, x.x + rows[j] * x.stride, static_cast<size_t>(panel.k) * sizeof(float));
    a = scratch->gathered.data();
    a_row = panel.k;
  }
  kernels_.gemm_f32(a, a_row, 1, panel.f32, panel.lanes, panel.k, n, tile, panel.lanes, false);
}

void CpuBackend::multiply_dots(const Matrix& w, int64_t row0, int64_t n_rows, const Activations& x, const int32_t* rows,
                               int64_t n, float* tile, int64_t tile_stride, ThreadScratch* scratch) {
  Q8Rows q8 = x.q8;
  if (rows) {
    const int64_t row_blocks = x.k / 32;
    scratch->gathered_q8.resize(static_cast<size_t>(kDotRows * row_blocks));
    q8.blocks = scratch->gathered_q8.data();
    for (int64_t j = 0; j < n; ++j) std::copy_n(x.q8.blocks + rows[j] * row_blocks, row_blocks, q8.blocks + j * row_blocks);
  }
  kernels_.gemv_q8[static_cast<int>(w.type)](w.data + row0 * w.row_bytes, w.row_bytes, n_rows, q8, n, tile, tile_stride, nullptr);
}

// The tile [n_rows, tile_stride], of which n_cols columns count, becomes part of the result; it is overwritten.
void CpuBackend::finish_tile(const LinearArgs& args, float* tile, int64_t tile_stride, int64_t row0, int64_t n_rows, int64_t col0,
                             int64_t n_cols) {
  for (int64_t j = 0; args.bias && j < n_rows; ++j) kernels_.add_scaled(args.bias + col0, 1.0f, n_cols, tile + j * tile_stride);
  const auto gelu = args.activation == Activation::gelu_tanh ? kernels_.gelu_tanh : kernels_.gelu_erf;
  const bool in_one = n_cols == tile_stride;
  for (int64_t j = 0; args.activation != Activation::none && j < (in_one ? 1 : n_rows); ++j)
    gelu(tile + j * tile_stride, in_one ? n_rows * n_cols : n_cols);
  for (int64_t j = 0; j < n_rows; ++j) {
    float* out = args.out + (row0 + j) * args.out_stride + col0;
    if (args.add)
      kernels_.add_scaled(tile + j * tile_stride, 1.0f, n_cols, out);
    else
      std::memcpy(out, tile + j * tile_stride, static_cast<size_t>(n_cols) * sizeof(float));
  }
}

// Panels of the whole matrix are packed first and shared by all threads; then blocks of activations that fit the second-level
// cache pass over them.
template <typename Form>
void CpuBackend::multiply_in(const Form& form, const Product& product, const LinearArgs* epilogue) {
  using Number = typename Form::Number;
  const Matrix& w = product.w;
  const int64_t lanes = kernels_.tile_lanes, k = w.cols, n = product.x.n;
  const int64_t n_panels = ceil_div(w.rows, lanes), panel_size = k * lanes;
  const int64_t per_group = std::clamp<int64_t>(kPackedBytes / (panel_size * 4), 1, n_panels);
  LinearArgs plain{};
  plain.out = product.out;
  plain.out_stride = product.out_stride;
  const LinearArgs& finish = epilogue ? *epilogue : plain;
  const Number* rows;
  int64_t stride = product.x.stride;
  if constexpr (std::is_same_v<Number, float>) {
    rows = product.x.x;
  } else {
    converted_.resize(static_cast<size_t>(n * k));
    for_rows(n, k, [&](int64_t j) { form.row(product.x.x + j * product.x.stride, k, converted_.data() + j * k); });
    rows = converted_.data();
    stride = k;
  }
  for (int64_t group0 = 0; group0 < n_panels; group0 += per_group) {
    const int64_t group = std::min(per_group, n_panels - group0);
    packed_.resize(static_cast<size_t>(group * panel_size));
    auto* packed = reinterpret_cast<Number*>(packed_.data());
    pool_.parallel_for(group, [&](int64_t p, int thread) {
      ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
      const int64_t first = (group0 + p) * lanes;
      if constexpr (std::is_same_v<Number, float>) {
        pack_float(w, first, lanes, &scratch, packed + p * panel_size);
      } else if (const auto pack = kernels_.pack_bf16[static_cast<int>(w.type)]) {
        pack(w.data + first * w.row_bytes, w.row_bytes, std::min(lanes, w.rows - first), k, packed + p * panel_size);
      } else {
        scratch.panel_f32[0].resize(static_cast<size_t>(panel_size));
        pack_float(w, first, lanes, &scratch, scratch.panel_f32[0].data());
        form.across(scratch.panel_f32[0].data(), k, lanes, 1.0f, packed + p * panel_size);
      }
    });
    const int64_t n_blocks = ceil_div(n, kTokenBlock);
    const int64_t cuts = std::clamp<int64_t>(ceil_div(16 * pool_.n_threads(), n_blocks), 1, group),
                  panels_per_cut = ceil_div(group, cuts);
    pool_.parallel_for(n_blocks * cuts, [&](int64_t chunk, int thread) {
      const int64_t row0 = chunk / cuts * kTokenBlock, n_rows = std::min(kTokenBlock, n - row0);
      const int64_t first = chunk % cuts * panels_per_cut, last = std::min(group, first + panels_per_cut);
      ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
      AlignedBuffer<float>& tile = scratch.tile[0];
      tile.resize(static_cast<size_t>(kTokenBlock * lanes));
      for (int64_t p = first; p < last; ++p) {
        const int64_t col0 = (group0 + p) * lanes;
        form.floats(rows + row0 * stride, stride, packed + p * panel_size, lanes, k, n_rows, tile.data(), lanes);
        finish_tile(finish, tile.data(), lanes, row0, n_rows, col0, std::min(lanes, w.rows - col0));
      }
    });
  }
}

void CpuBackend::multiply_float(const Product& product, const LinearArgs* epilogue, bool bf16) {
  if (bf16 && InBf16::takes(kernels_, product.w.cols))
    multiply_in(InBf16{kernels_}, product, epilogue);
  else
    multiply_in(InFloat{kernels_}, product, epilogue);
}

void CpuBackend::multiply_many(const std::vector<Product>& products) {
  std::vector<int64_t> first_chunk(products.size() + 1, 0);
  for (size_t i = 0; i < products.size(); ++i) {
    const bool q8 = uses_int8(products[i].w);
    if (!q8) multiply_float(products[i], nullptr, false);
    first_chunk[i + 1] = first_chunk[i] + (q8 ? ceil_div(products[i].w.rows, kernels_.panel_lanes) : 0);
  }
  pool_.parallel_for(first_chunk.back(), [&](int64_t chunk, int thread) {
    const size_t i =
        static_cast<size_t>(std::upper_bound(first_chunk.begin(), first_chunk.end(), chunk) - first_chunk.begin() - 1);
    const Product& product = products[i];
    const int64_t lanes = kernels_.panel_lanes, row0 = (chunk - first_chunk[i]) * lanes,
                  n_cols = std::min(lanes, product.w.rows - row0);
    ThreadScratch& scratch = scratch_[thread];
    if (prefers_dots(product.w, product.x.n)) {
      multiply_dots(product.w, row0, n_cols, product.x, nullptr, product.x.n, product.out + row0, product.out_stride, &scratch);
      return;
    }
    Panel panel = pack(product.w, row0, 0, &scratch);
    panel.q8.ahead = rows_ahead(product.w, row0 + pool_.n_threads() * lanes);
    if (n_cols == lanes) {
      kernels_.gemm_panel_q8(panel.q8, product.x.q8, nullptr, product.x.n, product.out + row0, product.out_stride);
      return;
    }
    scratch.tile[0].resize(static_cast<size_t>(kTokenBlock * lanes));
    for (int64_t j0 = 0; j0 < product.x.n; j0 += kTokenBlock) {
      const int64_t n = std::min(kTokenBlock, product.x.n - j0);
      multiply_panel(panel, product.x.rows(j0, n), nullptr, n, scratch.tile[0].data(), &scratch);
      for (int64_t j = 0; j < n; ++j)
        std::memcpy(product.out + (j0 + j) * product.out_stride + row0, scratch.tile[0].data() + j * lanes,
                    static_cast<size_t>(n_cols) * 4);
    }
  });
}

void CpuBackend::add_product(std::vector<Product>* products, const Matrix& w, const Activations& x, int64_t n_expanded,
                             float* out, int64_t out_stride) const {
  if (uses_int8(w) || n_expanded <= 0 || n_expanded >= x.n) {
    products->push_back({w, x, out, out_stride, n_expanded > 0 ? RowForm::expanded : RowForm::absorbed});
    return;
  }
  products->push_back({w, x.rows(0, n_expanded), out, out_stride, RowForm::expanded});
  products->push_back({w, x.rows(n_expanded, x.n - n_expanded), out + n_expanded * out_stride, out_stride, RowForm::absorbed});
}

// Int8 products stream the weights of few rows and unpack those of many, which gives the same bits; float products do as the form
// says.
void CpuBackend::multiply(const std::vector<Product>& products, const uint8_t* after) {
  std::vector<Product> streamed, unpacked;
  for (const Product& product : products) {
    const bool streams = uses_int8(product.w) ? product.x.n <= kDotRows : product.form == RowForm::absorbed;
    (streams ? streamed : unpacked).push_back(product);
  }
  if (!unpacked.empty()) multiply_many(unpacked);
  if (!streamed.empty()) multiply_few(streamed, after);
}

void CpuBackend::linear(const LinearArgs& original) {
  LinearArgs args = original;
  if (args.out_stride == 0) args.out_stride = args.w.rows;
  std::vector<SideRow> sides;
  add_side_rows(args.w, args.x, args.n, args.adapters, args.out, args.out_stride, &sides);
  if (!sides.empty()) {
    linear_with_sides(args, std::move(sides));
    return;
  }
  if (observer_) show({{&args.w, args.x, args.n, args.w.cols, nullptr}});
  const bool plain = !args.bias && args.activation == Activation::none && !args.add;
  const bool bytes = args.compute_type == ComputeType::by_weights && uses_int8(args.w);
  const int64_t n_expanded = std::min(args.n_expanded, args.n);
  if (!bytes && n_expanded > 0) {
    const Activations x{args.x, n_expanded, args.w.cols, args.w.cols, {}};
    multiply_float({args.w, x, args.out, args.out_stride, RowForm::expanded}, plain ? nullptr : &args,
                   args.compute_type == ComputeType::bf16);
    args.x += n_expanded * args.w.cols;
    args.out += n_expanded * args.out_stride;
    args.n -= n_expanded;
  }
  if (args.n == 0) return;
  Activations x{args.x, args.n, args.w.cols, args.w.cols, {}};
  quantize_for(args.w, &x, &q8_x_);
  if (plain) {
    multiply({{args.w, x, args.out, args.out_stride, RowForm::absorbed}});
    return;
  }
  products_.resize(static_cast<size_t>(args.n * args.w.rows));
  multiply({{args.w, x, products_.data(), args.w.rows, RowForm::absorbed}});
  for_rows(args.n, args.w.rows, [&](int64_t j) {
    constexpr int64_t kColumns = 128;
    for (int64_t c = 0; c < args.w.rows; c += kColumns)
      finish_tile(args, products_.data() + j * args.w.rows + c, args.w.rows, j, 1, c, std::min(kColumns, args.w.rows - c));
  });
}

// The activation comes after the side products, so it waits for them.
void CpuBackend::linear_with_sides(LinearArgs args, std::vector<SideRow> sides) {
  const Activation activation = args.activation;
  KIMI_DCHECK(activation == Activation::none || !args.add);
  args.activation = Activation::none;
  args.adapters = nullptr;
  linear(args);
  add_sides(std::move(sides));
  if (activation == Activation::none) return;
  const auto gelu = activation == Activation::gelu_tanh ? kernels_.gelu_tanh : kernels_.gelu_erf;
  for_rows(args.n, args.w.rows, [&](int64_t j) { gelu(args.out + j * args.out_stride, args.w.rows); });
}

}  // namespace kimi::cpu
