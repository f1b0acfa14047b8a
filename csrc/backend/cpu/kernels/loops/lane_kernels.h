// gemv_q8 and pack_panel_q8 of kernel_table.h for an instruction set with int8 lanes (see lane_formats.h for L).
//
// The arithmetic of an output element is that of loops/int8.h, operation by operation, with fused multiply-adds: exact integer
// dot of a group, then acc = fma(dot, w_scale * x_scale, acc), then acc = fma(-w_min, x_sum, acc), groups in order. So the bits
// agree between GEMV and GEMM, and between every instruction set that has FMA.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/loops/lane_formats.h"

namespace kimi::cpu::loops {

// Where a block of `n_rows` < kWidth rows is copied, so that the lanes without a row read zeros (which unpack to the value 0)
// and no byte outside the rows is touched.
template <class L, Type type>
struct PartialRows {
  static constexpr int kBytes = sizeof(typename quant::BlockTraits<type>::Block);
  alignas(64) uint8_t bytes[L::kWidth * kBytes];

  __attribute__((always_inline)) explicit PartialRows(int64_t n_rows) {
    if (n_rows < L::kWidth) __builtin_memset(bytes, 0, sizeof(bytes));
  }
  __attribute__((always_inline)) LaneRows<L> copy(const uint8_t* first, int64_t row_bytes, int64_t n_rows) {
    for (int64_t r = 0; r < n_rows; ++r) __builtin_memcpy(bytes + r * kBytes, first + r * row_bytes, kBytes);
    return LaneRows<L>::at(bytes, kBytes);
  }
};

// kWidth rows are read column by column, a walk that no hardware prefetcher follows: without help a core gets a tenth of the
// memory's speed. So beside each block of the present rows as many bytes of the next rows are fetched, in the order of addresses.
KIMI_INLINE void prefetch(const uint8_t* first, int64_t n_bytes) {
  for (int64_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(first + i);
}

// ---- GEMV ----------------------------------------------------------------------------------------------------------

// One block of kWidth rows against T activation rows.
template <class L, Type type, int T>
struct DotSink {
  using Lanes = L;
  using Traits = quant::BlockTraits<type>;
  typename L::F acc[T];
  const Q8Block* x[T];  // where the block begins, in each activation row
  const uint8_t* next;  // of the next rows: as many bytes as the present block has, or nullptr
  int64_t further;      // bytes from there on that are fetched from memory meanwhile

  template <int g, int n>
  __attribute__((always_inline)) void group(const typename L::U* u, typename L::F w_scale, typename L::F w_min) {
    // A group's share of the lines, for all at once would fill the queue of misses. Each line is asked for twice: far ahead past
    // the outer caches, where weights would only push each other out, and then close by.
    constexpr int kBytes = L::kWidth * static_cast<int>(sizeof(typename Traits::Block));
    constexpr int kFrom = (kBytes * g / Traits::groups + 63) / 64 * 64, kTo = kBytes * (g + 1) / Traits::groups;
    for (int i = kFrom; next && i < kTo; i += 64) {
      __builtin_prefetch(next + i);
      __builtin_prefetch(next + further + i, 0, 0);
    }
    constexpr int kBlock = g * Traits::group / 32, kHalf = g % 2;
    constexpr bool kHalves = Traits::group == 16;
    for (int t = 0; t < T; ++t) {
      const Q8Block& block = x[t][kBlock];
      const int32_t x_isum = kHalves ? block.half_isum[kHalf] : block.isum;
      const auto dot =
          L::template dot<n, Unpack<type>::bias, Unpack<type>::max_u>(u, block.q + (kHalves ? 16 * kHalf : 0), x_isum);
      acc[t] = L::multiply_add(L::to_float(dot), L::multiply(w_scale, L::splat_float(block.scale)), acc[t]);
      if constexpr (Traits::has_min)
        acc[t] = L::subtract_product(w_min, L::splat_float(kHalves ? block.half_sum[kHalf] : block.sum), acc[t]);
    }
  }
};

// kWidth rows, of which the first n_rows are real, against the T activation rows from j0 on, of which the first n_x are.
// next: rows to fetch meanwhile, or nullptr.
template <class L, Type type, int T>
__attribute__((noinline)) static void gemv_tile(const uint8_t* w, int64_t row_bytes, int64_t n_rows, const uint8_t* next,
                                                const Q8Rows& x, int64_t j0, int64_t n_x, float* out, int64_t out_stride) {
  using Traits = quant::BlockTraits<type>;
  constexpr int kBytes = sizeof(typename Traits::Block);
  DotSink<L, type, T> sink;
  for (int t = 0; t < T; ++t) {
    const int64_t j = j0 + (t < n_x ? t : n_x - 1);  // columns beyond the last repeat it
    sink.acc[t] = L::zero();
    sink.x[t] = x.blocks + j * (x.k / 32);
  }
  sink.further = L::kWidth * row_bytes * 3 / 4;
  PartialRows<L, type> partial(n_rows);
  LaneRows<L> rows = LaneRows<L>::at(w, row_bytes);
  for (int64_t b = 0; b < x.k / Traits::elems; ++b) {
    sink.next = next ? next + b * L::kWidth * kBytes : nullptr;
    Unpack<type>::template run<L>(n_rows < L::kWidth ? partial.copy(w + b * kBytes, row_bytes, n_rows) : rows, sink);
    for (int i = 0; i < L::kWidth / 4; ++i) rows.p[i] += kBytes;
    for (int t = 0; t < T; ++t) sink.x[t] += Traits::elems / 32;
  }
  for (int t = 0; t < T; ++t) {
    if (t >= n_x) break;
    float* to = out + (j0 + t) * out_stride;
    if (n_rows == L::kWidth) {
      L::store_floats(to, sink.acc[t]);
    } else {
      L::store_some(to, sink.acc[t], n_rows);
    }
  }
}

// Rows by kWidth, columns by four: the weights of one set of rows stay in the cache for all columns.
template <class L, Type type>
KIMI_INLINE void gemv_lanes(const void* w, int64_t row_bytes, int64_t n_rows, const Q8Rows& x, int64_t n_x, float* out,
                            int64_t out_stride, const uint8_t* after) {
  const auto* rows = static_cast<const uint8_t*>(w);
  prefetch(rows, (n_rows < L::kWidth ? n_rows : L::kWidth) * row_bytes);
  for (int64_t r = 0; r < n_rows; r += L::kWidth, rows += L::kWidth * row_bytes) {
    const int64_t left = n_rows - r, n = left < L::kWidth ? left : L::kWidth;
    for (int64_t j0 = 0; j0 < n_x; j0 += 4) {
      const int64_t columns = n_x - j0;
      const uint8_t* next = columns > 4 ? nullptr : left > L::kWidth ? rows + L::kWidth * row_bytes : after;
      if (columns == 1) {
        gemv_tile<L, type, 1>(rows, row_bytes, n, next, x, j0, columns, out + r, out_stride);
      } else if (columns == 2) {
        gemv_tile<L, type, 2>(rows, row_bytes, n, next, x, j0, columns, out + r, out_stride);
      } else {
        gemv_tile<L, type, 4>(rows, row_bytes, n, next, x, j0, columns, out + r, out_stride);
      }
    }
  }
}

// ---- panels --------------------------------------------------------------------------------------------------------

// Weights go into panels as they are unpacked; where the GEMM does not care how large they are, those with a bias get one of 128.
template <class L, Type type>
constexpr int panel_bias = L::kPlainPanels || Unpack<type>::bias == 0 ? Unpack<type>::bias : 128;

// One block of kWidth rows into its place in a panel of `lanes` rows.
template <class L, Type type, int lanes>
struct PanelSink {
  using Lanes = L;
  using Traits = quant::BlockTraits<type>;
  uint8_t* q;
  float* scale;
  float* min;

  template <int g, int n>
  __attribute__((always_inline)) void group(const typename L::U* u, typename L::F w_scale, typename L::F w_min) {
    constexpr uint32_t kRest = panel_bias<L, type> - Unpack<type>::bias;
    for (int i = 0; i < n; ++i)
      L::store(q + (g * n + i) * lanes * 4, kRest ? L::add_bytes(u[i], L::splat(kRest * 0x01010101u)) : u[i]);
    L::store_floats(scale + g * lanes, w_scale);
    if constexpr (Traits::has_min) L::store_floats(min + g * lanes, w_min);
  }
};

template <class L, Type type, int lanes>
KIMI_INLINE void pack_lanes(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, PanelQ8* out) {
  using Traits = quant::BlockTraits<type>;
  constexpr int kBytes = sizeof(typename Traits::Block);
  out->bias = panel_bias<L, type>;
  out->max_q = Unpack<type>::max_u + panel_bias<L, type> - Unpack<type>::bias;
  out->group = Traits::group;
  out->has_min = Traits::has_min;
  out->k = k;
  prefetch(static_cast<const uint8_t*>(w), (n_rows < L::kWidth ? n_rows : L::kWidth) * row_bytes);
  for (int64_t r = 0; r < lanes; r += L::kWidth) {
    const int64_t left = n_rows - r, n = left < 0 ? 0 : left < L::kWidth ? left : L::kWidth;
    const uint8_t* first = static_cast<const uint8_t*>(w) + (n ? r * row_bytes : 0);
    PanelSink<L, type, lanes> sink{out->q + 4 * r, out->scale + r, Traits::has_min ? out->min + r : nullptr};
    const uint8_t* next = left > L::kWidth ? first + L::kWidth * row_bytes : nullptr;
    PartialRows<L, type> partial(n);
    LaneRows<L> rows = LaneRows<L>::at(first, row_bytes);
    for (int64_t b = 0; b < k / Traits::elems; ++b) {
      if (next) prefetch(next + b * L::kWidth * kBytes, L::kWidth * kBytes);
      Unpack<type>::template run<L>(n < L::kWidth ? partial.copy(first + b * kBytes, row_bytes, n) : rows, sink);
      for (int i = 0; i < L::kWidth / 4; ++i) rows.p[i] += kBytes;
      sink.q += Traits::elems * lanes;
      sink.scale += Traits::groups * lanes;
      if constexpr (Traits::has_min) sink.min += Traits::groups * lanes;
    }
  }
}

// ---- a table's entries for every format -----------------------------------------------------------------------------

template <class L, Type type>
void gemv_of(const void* w, int64_t row_bytes, int64_t n_rows, const Q8Rows& x, int64_t n_x, float* out, int64_t out_stride,
             const uint8_t* next) {
  gemv_lanes<L, type>(w, row_bytes, n_rows, x, n_x, out, out_stride, next);
}
template <class L, Type type, int lanes>
void pack_of(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, PanelQ8* out) {
  pack_lanes<L, type, lanes>(w, row_bytes, n_rows, k, out);
}

template <class L>
KIMI_INLINE void fill_gemv(KernelTable* table) {
#define KIMI_FILL(name, id) table->gemv_q8[static_cast<int>(Type::name)] = gemv_of<L, Type::name>;
  KIMI_QUANT_TYPES(KIMI_FILL)
#undef KIMI_FILL
}
template <class L, int lanes>
KIMI_INLINE void fill_pack(KernelTable* table) {
#define KIMI_FILL(name, id) table->pack_panel_q8[static_cast<int>(Type::name)] = pack_of<L, Type::name, lanes>;
  KIMI_QUANT_TYPES(KIMI_FILL)
#undef KIMI_FILL
}

}  // namespace kimi::cpu::loops
