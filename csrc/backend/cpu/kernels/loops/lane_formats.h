// Every block format taken apart with one weight row per lane: lane r of a vector holds four bytes of row r, so that bit
// fields, sub-scales and 4-byte transposes of 8 or 16 rows cost what those of one row cost. Panels for the GEMM and the dots of
// the GEMV are both made of these.
//
// `Unpack<type>::run<L>(rows, sink)` walks one block of L::kWidth rows in the order of its groups and calls
//   sink.template group<g, n>(u, scale, min)
// with the n dwords of group g (n = group / 4): u[i] holds elements 4 i .. 4 i + 3 of every row as unsigned bytes,
//   value = scale * (u - bias) - min          (min only when BlockTraits<type>::has_min)
// What a field means is defined in quant/<format>.h, whose `unpack` these agree with bit by bit.
//
// L, the lanes of an instruction set, is given by its folder (int8_lanes.h): U is a vector of kWidth dwords, F of kWidth floats.
#pragma once
#include "quant/blocks.h"

namespace kimi::cpu::loops {

using quant::Type;

// kWidth rows at once: rows 4 i .. 4 i + 3 begin at p[i] and lie `stride` bytes apart.
template <class L>
struct LaneRows {
  const uint8_t* p[L::kWidth / 4];
  int64_t stride;

  KIMI_INLINE LaneRows at(const uint8_t* first, int64_t stride) {
    LaneRows rows;
    for (int i = 0; i < L::kWidth / 4; ++i) rows.p[i] = first + 4 * i * stride;
    rows.stride = stride;
    return rows;
  }
};

// Bytes offset .. offset + 15 of each row as 4 dwords.
template <class L>
struct Quad {
  typename L::U v[4];
};
template <class L>
KIMI_INLINE Quad<L> load_quad(const LaneRows<L>& rows, int offset) {
  Quad<L> quad;
  L::load_transposed(rows.p, rows.stride, offset, quad.v);
  return quad;
}

// Bytes offset .. offset + 31 as 8 dwords.
template <class L>
KIMI_INLINE void load_eight(const LaneRows<L>& rows, int offset, typename L::U* out) {
  L::load_transposed(rows.p, rows.stride, offset, out);
  L::load_transposed(rows.p, rows.stride, offset + 16, out + 4);
}

// bias: what is subtracted from u, 0 where there is a minimum; max_u: the largest u.
//
// For any format: each row by the format's own `unpack`, then side by side.
template <Type type>
struct UnpackByRow {
  using Traits = quant::BlockTraits<type>;
  static constexpr int bias = Traits::has_min ? 0 : Traits::reach;
  static constexpr int max_u = bias == 128 ? 255 : bias + Traits::reach;

  template <class L>
  struct Rows {
    int8_t q[L::kWidth][Traits::elems];
    float scale[Traits::groups][L::kWidth], min[Traits::groups][L::kWidth];
  };

  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    Rows<L> unpacked;
    unpack_rows<L>(rows, &unpacked);
    pass_groups<0, L>(unpacked, LaneRows<L>::at(reinterpret_cast<const uint8_t*>(unpacked.q), Traits::elems), sink);
  }

  template <class L>
  __attribute__((noinline)) static void unpack_rows(const LaneRows<L>& rows, Rows<L>* out) {
    for (int r = 0; r < L::kWidth; ++r) {
      float scale[Traits::groups], min[Traits::groups] = {};
      unpack(*reinterpret_cast<const typename Traits::Block*>(rows.p[r / 4] + r % 4 * rows.stride), out->q[r], scale, min);
      for (int g = 0; g < Traits::groups; ++g) {
        out->scale[g][r] = scale[g];
        if constexpr (Traits::has_min) out->min[g][r] = min[g];
      }
    }
  }

  template <int g, class L, class Sink>
  KIMI_INLINE void pass_groups(const Rows<L>& unpacked, const LaneRows<L>& q, Sink& sink) {
    typename L::U u[Traits::group / 4];
    for (int t = 0; t < Traits::group / 16; ++t) L::load_transposed(q.p, q.stride, g * Traits::group + 16 * t, u + 4 * t);
    if constexpr (bias != 0) {
      for (int t = 0; t < Traits::group / 4; ++t) u[t] = L::add_bytes(u[t], L::splat(bias * 0x01010101u));
    }
    const auto scale = L::load_floats(unpacked.scale[g]);
    if constexpr (Traits::has_min) {
      sink.template group<g, Traits::group / 4>(u, scale, L::load_floats(unpacked.min[g]));
    } else {
      sink.template group<g, Traits::group / 4>(u, scale, scale);
    }
    if constexpr (g + 1 < Traits::groups) pass_groups<g + 1, L>(unpacked, q, sink);
  }
};

// A format's own, below, takes the fields of all rows apart at once and is several times as fast.
template <Type type>
struct Unpack : UnpackByRow<type> {};

// ---- blocks of 32 with 4-bit quants: byte j holds element j (low nibble) and j + 16 ------------------------------------
template <class L>
KIMI_INLINE void split_nibbles(const Quad<L>& qs, typename L::U* u) {
  const typename L::U low = L::splat(0x0f0f0f0f);
  for (int t = 0; t < 4; ++t) {
    u[t] = L::bit_and(qs.v[t], low);
    u[t + 4] = L::bit_and(L::template shift_right<4>(qs.v[t]), low);
  }
}

template <>
struct Unpack<Type::Q4_0> {
  static constexpr int bias = 8, max_u = 15;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    const auto d = L::f32_from_f16_low(load_quad<L>(rows, 0).v[0]);
    split_nibbles<L>(load_quad<L>(rows, 2), u);
    sink.template group<0, 8>(u, d, d);
  }
};

template <>
struct Unpack<Type::Q4_1> {
  static constexpr int bias = 0, max_u = 15;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    const auto head = load_quad<L>(rows, 0).v[0];
    split_nibbles<L>(load_quad<L>(rows, 4), u);
    sink.template group<0, 8>(u, L::f32_from_f16_low(head), L::negate(L::f32_from_f16_high(head)));
  }
};

template <>
struct Unpack<Type::Q5_0> {
  static constexpr int bias = 16, max_u = 31;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    const auto head = load_quad<L>(rows, 0);  // d, qh, two bytes of qs
    const auto d = L::f32_from_f16_low(head.v[0]);
    const auto qh = L::bit_or(L::template shift_right<16>(head.v[0]), L::template shift_left<16>(head.v[1]));
    split_nibbles<L>(load_quad<L>(rows, 6), u);
    L::add_fifth_bits(u, qh);
    sink.template group<0, 8>(u, d, d);
  }
};

template <>
struct Unpack<Type::Q5_1> {
  static constexpr int bias = 0, max_u = 31;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    const auto head = load_quad<L>(rows, 0);  // d, m, qh
    split_nibbles<L>(load_quad<L>(rows, 8), u);
    L::add_fifth_bits(u, head.v[1]);
    sink.template group<0, 8>(u, L::f32_from_f16_low(head.v[0]), L::negate(L::f32_from_f16_high(head.v[0])));
  }
};

template <>
struct Unpack<Type::Q8_0> {
  static constexpr int bias = 128, max_u = 255;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    const auto d = L::f32_from_f16_low(load_quad<L>(rows, 0).v[0]);
    const auto first = load_quad<L>(rows, 2), second = load_quad<L>(rows, 18);
    for (int t = 0; t < 4; ++t) {
      u[t] = L::bit_xor(first.v[t], L::splat(0x80808080));
      u[t + 4] = L::bit_xor(second.v[t], L::splat(0x80808080));
    }
    sink.template group<0, 8>(u, d, d);
  }
};

// ---- 4-bit quants that are indices into a table -----------------------------------------------------------------------
// The table's values made unsigned by `bias`.
template <int bias>
KIMI_INLINE void biased_table(const int8_t* values, uint8_t* table) {
  for (int i = 0; i < 16; ++i) table[i] = static_cast<uint8_t>(values[i] + bias);
}

template <class L>
KIMI_INLINE void look_up(const uint8_t* table, typename L::U* u) {
  const typename L::U values = L::load_table(table);
  for (int t = 0; t < 8; ++t) u[t] = L::look_up(values, u[t]);
}

template <>
struct Unpack<Type::IQ4_NL> {
  static constexpr int bias = 128, max_u = 255;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    uint8_t table[16];
    biased_table<bias>(quant::kIq4Values, table);
    const auto d = L::f32_from_f16_low(load_quad<L>(rows, 0).v[0]);
    split_nibbles<L>(load_quad<L>(rows, 2), u);
    look_up<L>(table, u);
    sink.template group<0, 8>(u, d, d);
  }
};

template <>
struct Unpack<Type::MXFP4> {
  static constexpr int bias = 12, max_u = 24;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    typename L::U u[8];
    uint8_t table[16];
    biased_table<bias>(quant::kE2m1Doubled, table);
    // 2^(e - 128): the exponent field e - 1, and for e < 2 the denormals 2^21 << e; a maximum picks the right one.
    const auto e = L::bit_and(load_quad<L>(rows, 0).v[0], L::splat(0xff));
    const auto normal = L::template shift_left<23>(L::subtract(L::maximum(e, L::splat(1)), L::splat(1)));
    const auto denormal = L::template shift_left<21>(L::add(L::minimum(e, L::splat(1)), L::splat(1)));
    const auto scale = L::as_float(L::maximum(normal, denormal));
    split_nibbles<L>(load_quad<L>(rows, 1), u);
    look_up<L>(table, u);
    sink.template group<0, 8>(u, scale, scale);
  }
};

template <>
struct Unpack<Type::IQ4_XS> {
  static constexpr int bias = 128, max_u = 255;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    uint8_t table[16];
    biased_table<bias>(quant::kIq4Values, table);
    const auto head = load_quad<L>(rows, 0);  // d, scales_h, scales_l, two dwords of qs
    const auto d = L::f32_from_f16_low(head.v[0]);
    // scales_h in the upper half of the first dword: bits 16 + 2 b.
    group<0>(rows, sink, table, d, L::bit_and(head.v[1], L::splat(15)), L::template shift_right<12>(head.v[0]));
    group<1>(rows, sink, table, d, L::template shift_right<4>(head.v[1]), L::template shift_right<14>(head.v[0]));
    group<2>(rows, sink, table, d, L::template shift_right<8>(head.v[1]), L::template shift_right<16>(head.v[0]));
    group<3>(rows, sink, table, d, L::template shift_right<12>(head.v[1]), L::template shift_right<18>(head.v[0]));
    group<4>(rows, sink, table, d, L::template shift_right<16>(head.v[1]), L::template shift_right<20>(head.v[0]));
    group<5>(rows, sink, table, d, L::template shift_right<20>(head.v[1]), L::template shift_right<22>(head.v[0]));
    group<6>(rows, sink, table, d, L::template shift_right<24>(head.v[1]), L::template shift_right<24>(head.v[0]));
    group<7>(rows, sink, table, d, L::template shift_right<28>(head.v[1]), L::template shift_right<26>(head.v[0]));
  }
  template <int g, class L, class Sink>
  KIMI_INLINE void group(const LaneRows<L>& rows, Sink& sink, const uint8_t* table, typename L::F d, typename L::U low,
                         typename L::U high) {
    typename L::U u[8];
    split_nibbles<L>(load_quad<L>(rows, 8 + 16 * g), u);
    look_up<L>(table, u);
    const auto sub_scale = L::bit_or(L::bit_and(low, L::splat(15)), L::bit_and(high, L::splat(0x30)));
    const auto scale = L::multiply(d, L::to_float(L::subtract(sub_scale, L::splat(32))));
    sink.template group<g, 8>(u, scale, scale);
  }
};

// ---- K formats: 256 elements ------------------------------------------------------------------------------------------
// Sub-scales and minimums of Q4_K and Q5_K as bytes: words[0..1] the 8 scales, words[2..3] the 8 minimums (quant/q4_k.h).
template <class L>
struct SubScales {
  typename L::U words[4];
  typename L::F d, dmin;

  KIMI_INLINE SubScales of(const Quad<L>& head) {
    const auto six = L::splat(0x3f3f3f3f), four = L::splat(0x0f0f0f0f), two = L::splat(0x30303030);
    SubScales s;
    s.d = L::f32_from_f16_low(head.v[0]);
    s.dmin = L::f32_from_f16_high(head.v[0]);
    s.words[0] = L::bit_and(head.v[1], six);
    s.words[1] = L::bit_or(L::bit_and(head.v[3], four), L::bit_and(L::template shift_right<2>(head.v[1]), two));
    s.words[2] = L::bit_and(head.v[2], six);
    s.words[3] = L::bit_or(L::bit_and(L::template shift_right<4>(head.v[3]), four),
                           L::bit_and(L::template shift_right<2>(head.v[2]), two));
    return s;
  }
  template <int b>
  __attribute__((always_inline)) typename L::F scale() const {
    return L::multiply(d, L::to_float(L::template byte_of<b % 4>(words[b / 4])));
  }
  template <int b>
  __attribute__((always_inline)) typename L::F min() const {
    return L::multiply(dmin, L::to_float(L::template byte_of<b % 4>(words[2 + b / 4])));
  }
};

template <>
struct Unpack<Type::Q4_K> {
  static constexpr int bias = 0, max_u = 15;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    const auto sub = SubScales<L>::of(load_quad<L>(rows, 0));
    pair<0>(rows, sink, sub);
    pair<1>(rows, sink, sub);
    pair<2>(rows, sink, sub);
    pair<3>(rows, sink, sub);
  }
  template <int g, class L, class Sink>
  KIMI_INLINE void pair(const LaneRows<L>& rows, Sink& sink, const SubScales<L>& sub) {
    const auto low = L::splat(0x0f0f0f0f);
    typename L::U qs[8], u[8];
    load_eight<L>(rows, 16 + 32 * g, qs);
    for (int t = 0; t < 8; ++t) u[t] = L::bit_and(qs[t], low);
    sink.template group<2 * g, 8>(u, sub.template scale<2 * g>(), sub.template min<2 * g>());
    for (int t = 0; t < 8; ++t) u[t] = L::bit_and(L::template shift_right<4>(qs[t]), low);
    sink.template group<2 * g + 1, 8>(u, sub.template scale<2 * g + 1>(), sub.template min<2 * g + 1>());
  }
};

template <>
struct Unpack<Type::Q5_K> {
  static constexpr int bias = 0, max_u = 31;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    const auto sub = SubScales<L>::of(load_quad<L>(rows, 0));
    typename L::U qh[8];
    load_eight<L>(rows, 16, qh);
    pair<0>(rows, sink, sub, qh);
    pair<1>(rows, sink, sub, qh);
    pair<2>(rows, sink, sub, qh);
    pair<3>(rows, sink, sub, qh);
  }
  template <int g, class L, class Sink>
  KIMI_INLINE void pair(const LaneRows<L>& rows, Sink& sink, const SubScales<L>& sub, const typename L::U* qh) {
    const auto low = L::splat(0x0f0f0f0f), fifth = L::splat(0x10101010);
    typename L::U qs[8], u[8];
    load_eight<L>(rows, 48 + 32 * g, qs);
    for (int t = 0; t < 8; ++t)  // bit 2 g of qh -> bit 4
      u[t] = L::bit_or(L::bit_and(qs[t], low), L::bit_and(L::template shift<4 - 2 * g>(qh[t]), fifth));
    sink.template group<2 * g, 8>(u, sub.template scale<2 * g>(), sub.template min<2 * g>());
    for (int t = 0; t < 8; ++t)  // bit 2 g + 1
      u[t] =
          L::bit_or(L::bit_and(L::template shift_right<4>(qs[t]), low), L::bit_and(L::template shift<3 - 2 * g>(qh[t]), fifth));
    sink.template group<2 * g + 1, 8>(u, sub.template scale<2 * g + 1>(), sub.template min<2 * g + 1>());
  }
};

// 16 sub-scales, four signed or unsigned bytes a dword; groups 2 b and 2 b + 1 make 32 elements.
template <>
struct Unpack<Type::Q6_K> {
  static constexpr int bias = 32, max_u = 63;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    const auto scales = load_quad<L>(rows, 192);
    const auto d = L::f32_from_f16_high(load_quad<L>(rows, 194).v[3]);
    half<0>(rows, sink, scales, d);
    half<1>(rows, sink, scales, d);
  }
  template <int n, class L, class Sink>
  KIMI_INLINE void half(const LaneRows<L>& rows, Sink& sink, const Quad<L>& scales, typename L::F d) {
    typename L::U ql[16], qh[8];
    load_eight<L>(rows, 64 * n, ql);
    load_eight<L>(rows, 64 * n + 32, ql + 8);
    load_eight<L>(rows, 128 + 32 * n, qh);
    quarter<n, 0>(sink, ql, qh, scales, d);
    quarter<n, 1>(sink, ql + 8, qh, scales, d);
    quarter<n, 2>(sink, ql, qh, scales, d);
    quarter<n, 3>(sink, ql + 8, qh, scales, d);
  }
  template <int n, int j, class L_U, class Sink, class Q, class F>
  KIMI_INLINE void quarter(Sink& sink, const L_U* ql, const L_U* qh, const Q& scales, F d) {
    using L = typename Sink::Lanes;
    const auto low = L::splat(0x0f0f0f0f), high = L::splat(0x30303030);
    L_U u[8];
    for (int t = 0; t < 8; ++t)
      u[t] = L::bit_or(L::bit_and(L::template shift < j<2 ? 0 : -4>(ql[t]), low),
                       L::bit_and(L::template shift<4 - 2 * j>(qh[t]), high));
    const auto words = scales.v[2 * n + j / 2];
    const auto first = L::multiply(d, L::to_float(L::template signed_byte_of<2 * (j % 2)>(words)));
    sink.template group<8 * n + 2 * j, 4>(u, first, first);
    const auto second = L::multiply(d, L::to_float(L::template signed_byte_of<2 * (j % 2) + 1>(words)));
    sink.template group<8 * n + 2 * j + 1, 4>(u + 4, second, second);
  }
};

template <>
struct Unpack<Type::Q3_K> {
  static constexpr int bias = 4, max_u = 7;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    // The last 16 bytes of the block: two bytes of qs, 12 of scales, d.
    const auto tail = load_quad<L>(rows, 94);
    const auto d = L::f32_from_f16_high(tail.v[3]);
    typename L::U packed[3], words[4];
    for (int i = 0; i < 3; ++i)
      packed[i] = L::bit_or(L::template shift_right<16>(tail.v[i]), L::template shift_left<16>(tail.v[i + 1]));
    const auto four = L::splat(0x0f0f0f0f), two = L::splat(0x30303030);
    words[0] = L::bit_or(L::bit_and(packed[0], four), L::bit_and(L::template shift_left<4>(packed[2]), two));
    words[1] = L::bit_or(L::bit_and(packed[1], four), L::bit_and(L::template shift_left<2>(packed[2]), two));
    words[2] = L::bit_or(L::bit_and(L::template shift_right<4>(packed[0]), four), L::bit_and(packed[2], two));
    words[3] = L::bit_or(L::bit_and(L::template shift_right<4>(packed[1]), four),
                         L::bit_and(L::template shift_right<2>(packed[2]), two));
    typename L::U mask[8];
    load_eight<L>(rows, 0, mask);
    half<0>(rows, sink, words, d, mask);
    half<1>(rows, sink, words, d, mask);
  }
  template <int n, class L, class Sink>
  KIMI_INLINE void half(const LaneRows<L>& rows, Sink& sink, const typename L::U* words, typename L::F d,
                        const typename L::U* mask) {
    typename L::U qs[8];
    load_eight<L>(rows, 32 + 32 * n, qs);
    quarter<n, 0>(sink, qs, mask, words[2 * n], d);
    quarter<n, 1>(sink, qs, mask, words[2 * n], d);
    quarter<n, 2>(sink, qs, mask, words[2 * n + 1], d);
    quarter<n, 3>(sink, qs, mask, words[2 * n + 1], d);
  }
  template <int n, int j, class L_U, class Sink, class F>
  KIMI_INLINE void quarter(Sink& sink, const L_U* qs, const L_U* mask, L_U words, F d) {
    using L = typename Sink::Lanes;
    L_U u[8];
    for (int t = 0; t < 8; ++t)
      u[t] = L::bit_or(L::bit_and(L::template shift<-2 * j>(qs[t]), L::splat(0x03030303)),
                       L::bit_and(L::template shift<2 - 4 * n - j>(mask[t]), L::splat(0x04040404)));
    const auto thirty_two = L::splat(32);
    const auto first = L::multiply(d, L::to_float(L::subtract(L::template byte_of<2 * (j % 2)>(words), thirty_two)));
    sink.template group<8 * n + 2 * j, 4>(u, first, first);
    const auto second = L::multiply(d, L::to_float(L::subtract(L::template byte_of<2 * (j % 2) + 1>(words), thirty_two)));
    sink.template group<8 * n + 2 * j + 1, 4>(u + 4, second, second);
  }
};

template <>
struct Unpack<Type::Q2_K> {
  static constexpr int bias = 0, max_u = 3;
  template <class L, class Sink>
  KIMI_INLINE void run(const LaneRows<L>& rows, Sink& sink) {
    const auto scales = load_quad<L>(rows, 0);
    const auto tail = load_quad<L>(rows, 68).v[3];
    const auto d = L::f32_from_f16_low(tail), dmin = L::f32_from_f16_high(tail);
    half<0>(rows, sink, scales, d, dmin);
    half<1>(rows, sink, scales, d, dmin);
  }
  template <int n, class L, class Sink>
  KIMI_INLINE void half(const LaneRows<L>& rows, Sink& sink, const Quad<L>& scales, typename L::F d, typename L::F dmin) {
    typename L::U qs[8];
    load_eight<L>(rows, 16 + 32 * n, qs);
    quarter<n, 0>(sink, qs, scales.v[2 * n], d, dmin);
    quarter<n, 1>(sink, qs, scales.v[2 * n], d, dmin);
    quarter<n, 2>(sink, qs, scales.v[2 * n + 1], d, dmin);
    quarter<n, 3>(sink, qs, scales.v[2 * n + 1], d, dmin);
  }
  template <int n, int j, class L_U, class Sink, class F>
  KIMI_INLINE void quarter(Sink& sink, const L_U* qs, L_U words, F d, F dmin) {
    using L = typename Sink::Lanes;
    L_U u[8];
    for (int t = 0; t < 8; ++t) u[t] = L::bit_and(L::template shift<-2 * j>(qs[t]), L::splat(0x03030303));
    const auto low = L::bit_and(words, L::splat(0x0f0f0f0f));
    const auto high = L::bit_and(L::template shift_right<4>(words), L::splat(0x0f0f0f0f));
    sink.template group<8 * n + 2 * j, 4>(u, L::multiply(d, L::to_float(L::template byte_of<2 * (j % 2)>(low))),
                                          L::multiply(dmin, L::to_float(L::template byte_of<2 * (j % 2)>(high))));
    sink.template group<8 * n + 2 * j + 1, 4>(u + 4, L::multiply(d, L::to_float(L::template byte_of<2 * (j % 2) + 1>(low))),
                                              L::multiply(dmin, L::to_float(L::template byte_of<2 * (j % 2) + 1>(high))));
  }
};

}  // namespace kimi::cpu::loops
