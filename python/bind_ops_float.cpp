// _core.ops: the float kernels of a kernel table.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/aligned_buffer.h"
#include "ops_args.h"

namespace kimi::ops {
namespace {

const cpu::KernelTable& table_of(const std::string& isa) { return cpu::select_kernels(isa.c_str()); }

py::array_t<float> copy_of(const py::array_t<float>& x) { return py::array_t<float>(x.size(), x.data()); }

py::array_t<float> gemv_float(const std::string& isa, const std::string& type, const py::object& w_object,
                              const py::object& x_object) {
  const cpu::KernelTable& table = table_of(isa);
  const quant::Format& format = format_named(type);
  check(format.is_float(), type + " is not a float type");
  const auto w = take<uint8_t>(w_object, "w", {kAny, kAny});
  const auto x = take<float>(x_object, "x", {kAny, kAny});
  const int64_t n_x = x.shape(0), k = x.shape(1), n_rows = w.shape(0);
  check(w.shape(1) >= k * format.block_bytes, "w: rows shorter than those of x");
  auto out = make<float>({n_x, n_rows});
  table.gemv_float[index_of(format)](w.data(), w.shape(1), n_rows, x.data(), k, k, n_x, out.mutable_data(), n_rows);
  return out;
}

// a [m, k] (or [k, m] with transposed = true), b [k, tile_lanes]; out: the initial values when accumulating.
py::array_t<float> gemm_f32(const std::string& isa, const py::object& a_object, const py::object& b_object,
                            const py::object& out_object, bool transposed) {
  const cpu::KernelTable& table = table_of(isa);
  const auto b = take<float>(b_object, "b", {kAny, table.tile_lanes});
  const int64_t k = b.shape(0);
  const auto a = transposed ? take<float>(a_object, "a", {k, kAny}) : take<float>(a_object, "a", {kAny, k});
  const int64_t m = a.shape(transposed ? 1 : 0);
  auto out = make<float>({m, table.tile_lanes});
  const bool accumulate = !out_object.is_none();
  if (accumulate) {
    const auto initial = take<float>(out_object, "out", {m, table.tile_lanes});
    std::copy_n(initial.data(), initial.size(), out.mutable_data());
  }
  table.gemm_f32(a.data(), transposed ? 1 : k, transposed ? m : 1, b.data(), table.tile_lanes, k, m, out.mutable_data(),
                 table.tile_lanes, accumulate);
  return out;
}

py::array_t<float> transpose_panel(const std::string& isa, const py::object& w_object, int64_t k) {
  const cpu::KernelTable& table = table_of(isa);
  const auto w = take<float>(w_object, "w", {kAny, kAny});
  check(w.shape(0) <= table.tile_lanes, "w: more rows than a tile has lanes");
  check(k >= 0 && k <= w.shape(1), "k: longer than the rows of w");
  auto out = make<float>({k, table.tile_lanes});
  table.transpose_panel(w.data(), w.shape(1), w.shape(0), k, out.mutable_data());
  return out;
}

// One block of keys. q [lanes, dk] -> the state (m [lanes], l [lanes], o [lanes, dv]) after it; state None: before any key.
py::tuple attention_block(const std::string& isa, const py::object& q_object, const py::object& k1_object,
                          const py::object& k2_object, const py::object& v_object, int64_t key0,
                          const py::object& last_key_object, const py::object& state) {
  const cpu::KernelTable& table = table_of(isa);
  const auto q = take<float>(q_object, "q", {kAny, kAny});
  const int64_t lanes = q.shape(0), dk = q.shape(1);
  check(lanes == table.tile_lanes || lanes == table.tile_lanes / 2, "q: " + std::to_string(lanes) +
                                                                        " queries, expected the lanes of a tile (" +
                                                                        std::to_string(table.tile_lanes) + ") or half of them");
  const auto k1 = take<float>(k1_object, "k1", {kAny, kAny});
  const int64_t n_keys = k1.shape(0);
  check(n_keys >= 1 && n_keys <= cpu::kMaxAttentionKeys, "k1: " + std::to_string(n_keys) + " keys in one block");
  py::array_t<float> k2;
  if (!k2_object.is_none()) k2 = take<float>(k2_object, "k2", {n_keys, kAny});
  const int64_t dk1 = k1.shape(1), dk2 = k2_object.is_none() ? 0 : k2.shape(1);
  check(dk1 + dk2 == dk, "q: " + std::to_string(dk) + " columns, k1 and k2 have " + std::to_string(dk1 + dk2));
  const auto v = take<float>(v_object, "v", {n_keys, kAny});
  const int64_t dv = v.shape(1);
  py::array_t<int32_t> last_key;
  if (!last_key_object.is_none()) last_key = take<int32_t>(last_key_object, "last_key", {lanes});

  AlignedBuffer<float> q_t(dk * lanes), o_t(dv * lanes), m(lanes), l(lanes), scores(cpu::kMaxAttentionKeys * lanes);
  for (int64_t i = 0; i < lanes; ++i) {
    for (int64_t d = 0; d < dk; ++d) q_t[d * lanes + i] = q.data()[i * dk + d];
    m[i] = -INFINITY;
  }
  if (!state.is_none()) {
    const auto before = py::cast<py::tuple>(state);
    check(before.size() == 3, "state: expected (m, l, o)");
    const auto m0 = take<float>(before[0], "m", {lanes}), l0 = take<float>(before[1], "l", {lanes}),
               o0 = take<float>(before[2], "o", {lanes, dv});
    for (int64_t i = 0; i < lanes; ++i) {
      m[i] = m0.data()[i];
      l[i] = l0.data()[i];
      for (int64_t d = 0; d < dv; ++d) o_t[d * lanes + i] = o0.data()[i * dv + d];
    }
  }
  cpu::AttentionBlock block{};
  block.lanes = lanes;
  block.q_t = q_t.data();
  block.k1 = k1.data();
  block.k2 = dk2 ? k2.data() : nullptr;
  block.v = v.data();
  block.dk1 = block.ldk1 = dk1;
  block.dk2 = block.ldk2 = dk2;
  block.dv = block.ldv = dv;
  block.n_keys = n_keys;
  block.key0 = key0;
  block.last_key = last_key_object.is_none() ? nullptr : last_key.data();
  block.m = m.data();
  block.l = l.data();
  block.o_t = o_t.data();
  block.scores = scores.data();
  table.attention_block(block);

  auto m_out = make<float>({lanes}), l_out = make<float>({lanes}), o_out = make<float>({lanes, dv});
  for (int64_t i = 0; i < lanes; ++i) {
    m_out.mutable_data()[i] = m[i];
    l_out.mutable_data()[i] = l[i];
    for (int64_t d = 0; d < dv; ++d) o_out.mutable_data()[i * dv + d] = o_t[d * lanes + i];
  }
  return py::make_tuple(m_out, l_out, o_out);
}

// One block of latent rows of bytes. bytes uint8 [n_keys, 32 n_blocks], scales uint16 [n_keys, n_blocks], q int8 [lanes, 32
// n_blocks] and q_scale [lanes, n_blocks] as they are, laid out here; None where the instruction set has no such kernel.
py::object latent_block_q8(const std::string& isa, const py::object& q_object, const py::object& q_scale_object,
                           const py::object& bytes_object, const py::object& scales_object, int64_t dv, int64_t key0,
                           const py::object& last_key_object, const py::object& state) {
  const cpu::KernelTable& table = table_of(isa);
  if (!table.latent_block_q8) return py::none();
  constexpr int64_t lanes = cpu::kLatentLanes;
  const auto q = take<int8_t>(q_object, "q", {lanes, kAny});
  const int64_t n = q.shape(1), n_blocks = n / 32;
  check(n % 64 == 0 && dv >= 1 && dv <= n,
        "q: " + std::to_string(n) + " columns, expected a multiple of 64, of which dv are values");
  const auto q_scale = take<float>(q_scale_object, "q_scale", {lanes, n_blocks});
  const auto bytes = take<uint8_t>(bytes_object, "bytes", {kAny, n});
  const int64_t n_keys = bytes.shape(0), row_bytes = n + 2 * n_blocks;
  check(n_keys >= 1 && n_keys <= cpu::kMaxAttentionKeys, "bytes: " + std::to_string(n_keys) + " keys in one block");
  const auto scales = take<uint16_t>(scales_object, "scales", {n_keys, n_blocks});
  const auto before = py::cast<py::tuple>(state);
  check(before.size() == 3, "state: expected (m, l, o)");
  py::array_t<int32_t> last_key;
  if (!last_key_object.is_none()) last_key = take<int32_t>(last_key_object, "last_key", {lanes});

  std::vector<uint8_t> rows(static_cast<size_t>(n_keys * row_bytes));  // not a byte more: a sanitizer sees what is read beyond
  for (int64_t key = 0; key < n_keys; ++key) {
    std::memcpy(rows.data() + key * row_bytes, bytes.data() + key * n, static_cast<size_t>(n));
    std::memcpy(rows.data() + key * row_bytes + n, scales.data() + key * n_blocks, static_cast<size_t>(2 * n_blocks));
  }
  std::vector<int8_t> q_t(static_cast<size_t>(n * lanes));
  std::vector<float> q_scale_t(static_cast<size_t>(n_blocks * lanes));
  std::vector<int32_t> q_sum(static_cast<size_t>(n_blocks * lanes));
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t i = 0; i < n; ++i) {
      q_t[static_cast<size_t>((i / 4 * lanes + lane) * 4 + i % 4)] = q.data()[lane * n + i];
      q_sum[static_cast<size_t>(i / 32 * lanes + lane)] += q.data()[lane * n + i];
    }
    for (int64_t b = 0; b < n_blocks; ++b) q_scale_t[static_cast<size_t>(b * lanes + lane)] = q_scale.data()[lane * n_blocks + b];
  }
  auto m = copy_of(take<float>(before[0], "m", {lanes})), l = copy_of(take<float>(before[1], "l", {lanes}));
  const auto o = take<float>(before[2], "o", {lanes, dv});
  AlignedBuffer<float> o_t(dv * lanes), scratch(cpu::latent_q8_scratch_floats(n_blocks));
  for (int64_t i = 0; i < lanes; ++i)
    for (int64_t d = 0; d < dv; ++d) o_t[d * lanes + i] = o.data()[i * dv + d];
  cpu::LatentBlockQ8 block{};
  block.q = q_t.data();
  block.q_scale = q_scale_t.data();
  block.q_sum = q_sum.data();
  block.rows = rows.data();
  block.row_bytes = row_bytes;
  block.n_blocks = n_blocks;
  block.dv = dv;
  block.n_keys = n_keys;
  block.key0 = key0;
  block.last_key = last_key_object.is_none() ? nullptr : last_key.data();
  block.m = m.mutable_data();
  block.l = l.mutable_data();
  block.o_t = o_t.data();
  block.scratch = scratch.data();
  table.latent_block_q8(block);
  auto o_out = make<float>({lanes, dv});
  for (int64_t i = 0; i < lanes; ++i)
    for (int64_t d = 0; d < dv; ++d) o_out.mutable_data()[i * dv + d] = o_t[d * lanes + i];
  return py::make_tuple(m, l, o_out);
}

py::array_t<float> f32_from_q8(const std::string& isa, const py::object& bytes_object, const py::object& scales_object,
                               int64_t n) {
  const auto bytes = take<uint8_t>(bytes_object, "bytes", {kAny});
  const auto scales = take<uint16_t>(scales_object, "scales", {kAny});
  check(n >= 0 && n <= bytes.size() && n <= 32 * scales.size(), "n: more numbers than there are bytes or scales");
  auto out = make<float>({n});
  table_of(isa).f32_from_q8_row(bytes.data(), scales.data(), n, out.mutable_data());
  return out;
}

py::array_t<float> rms_norm(const std::string& isa, const py::object& x_object, const py::object& weight_object, float eps) {
  const auto x = take<float>(x_object, "x", {kAny});
  const auto weight = take<float>(weight_object, "weight", {x.size()});
  auto out = make<float>({x.size()});
  table_of(isa).rms_norm(x.data(), weight.data(), eps, x.size(), out.mutable_data());
  return out;
}

py::array_t<float> layer_norm(const std::string& isa, const py::object& x_object, const py::object& weight_object,
                              const py::object& bias_object, float eps) {
  const auto x = take<float>(x_object, "x", {kAny});
  const auto weight = take<float>(weight_object, "weight", {x.size()});
  const auto bias = take<float>(bias_object, "bias", {x.size()});
  auto out = make<float>({x.size()});
  table_of(isa).layer_norm(x.data(), weight.data(), bias.data(), eps, x.size(), out.mutable_data());
  return out;
}

py::array_t<float> silu_mul(const std::string& isa, const py::object& gate_object, const py::object& up_object) {
  const auto gate = take<float>(gate_object, "gate", {kAny});
  const auto up = take<float>(up_object, "up", {gate.size()});
  auto out = make<float>({gate.size()});
  table_of(isa).silu_mul(gate.data(), up.data(), gate.size(), out.mutable_data());
  return out;
}

template <void (*cpu::KernelTable::*kernel)(float*, int64_t)>
py::array_t<float> in_place(const std::string& isa, const py::object& x_object) {
  auto out = copy_of(take<float>(x_object, "x", {kAny}));
  (table_of(isa).*kernel)(out.mutable_data(), out.size());
  return out;
}

py::array_t<float> rotate_pairs(const std::string& isa, const py::object& x_object, const py::object& cos_sin_object) {
  const auto cos_sin = take<float>(cos_sin_object, "cos_sin", {kAny, 2});
  const int64_t n_pairs = cos_sin.shape(0);
  auto out = copy_of(take<float>(x_object, "x", {2 * n_pairs}));
  table_of(isa).rotate_pairs(out.mutable_data(), cos_sin.data(), n_pairs);
  return out;
}

py::array_t<float> add_scaled(const std::string& isa, const py::object& x_object, float scale, const py::object& out_object) {
  const auto x = take<float>(x_object, "x", {kAny});
  auto out = copy_of(take<float>(out_object, "out", {x.size()}));
  table_of(isa).add_scaled(x.data(), scale, x.size(), out.mutable_data());
  return out;
}

py::array_t<float> f32_from_f16(const std::string& isa, const py::object& x_object) {
  const auto x = take<uint16_t>(x_object, "x", {kAny});
  auto out = make<float>({x.size()});
  table_of(isa).f32_from_f16_row(x.data(), x.size(), out.mutable_data());
  return out;
}

py::array_t<uint16_t> f16_from_f32(const std::string& isa, const py::object& x_object) {
  const auto x = take<float>(x_object, "x", {kAny});
  auto out = make<uint16_t>({x.size()});
  table_of(isa).f16_from_f32_row(x.data(), x.size(), out.mutable_data());
  return out;
}

}  // namespace

void bind_float(py::module_& m) {
  const auto isa = py::arg("isa");
  m.def("gemv_float", gemv_float, isa, py::arg("type"), py::arg("w"), py::arg("x"),
        "w uint8 [n_rows, row_bytes] of F32, F16 or BF16, x float32 [n_x, k] -> float32 [n_x, n_rows].");
  m.def("gemm_f32", gemm_f32, isa, py::arg("a"), py::arg("b"), py::arg("out") = py::none(), py::arg("transposed") = false,
        "a float32 [m, k] ([k, m] when transposed), b [k, tile_lanes] -> a @ b, added to out when given.");
  m.def("transpose_panel", transpose_panel, isa, py::arg("w"), py::arg("k"),
        "w float32 [n_rows, ld] -> its first k columns as [k, tile_lanes]; missing rows are zeros.");
  m.def("attention_block", attention_block, isa, py::arg("q"), py::arg("k1"), py::arg("k2"), py::arg("v"), py::arg("key0") = 0,
        py::arg("last_key") = py::none(), py::arg("state") = py::none(),
        "q [lanes, dk1 + dk2], k1 [n, dk1], k2 [n, dk2] or None, v [n, dv], last_key int32 [lanes] or None, state (m, l, o) or "
        "None -> (m, l, o).");
  m.def("latent_block_q8", latent_block_q8, isa, py::arg("q"), py::arg("q_scale"), py::arg("bytes"), py::arg("scales"),
        py::arg("dv"), py::arg("key0"), py::arg("last_key"), py::arg("state"),
        "q int8 [lanes, n], q_scale [lanes, n / 32], bytes uint8 [n_keys, n], scales uint16 halves [n_keys, n / 32], state (m, "
        "l, o) -> (m, l, o); None: no such kernel.");
  m.def("f32_from_q8", f32_from_q8, isa, py::arg("bytes"), py::arg("scales"), py::arg("n"),
        "scale * (byte - 128) of the first n.");
  m.def("rms_norm", rms_norm, isa, py::arg("x"), py::arg("weight"), py::arg("eps"), "One row.");
  m.def("layer_norm", layer_norm, isa, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), "One row.");
  m.def("silu_mul", silu_mul, isa, py::arg("gate"), py::arg("up"), "silu(gate) * up.");
  m.def("gelu_tanh", in_place<&cpu::KernelTable::gelu_tanh>, isa, py::arg("x"), "The tanh form of GELU.");
  m.def("gelu_erf", in_place<&cpu::KernelTable::gelu_erf>, isa, py::arg("x"), "The exact form of GELU.");
  m.def("rotate_pairs", rotate_pairs, isa, py::arg("x"), py::arg("cos_sin"), "x [2 n], cos_sin [n, 2]; pairs (2j, 2j + 1).");
  m.def("add_scaled", add_scaled, isa, py::arg("x"), py::arg("scale"), py::arg("out"), "out + scale * x.");
  m.def("f32_from_f16", f32_from_f16, isa, py::arg("x"), "uint16 bits -> float32.");
  m.def("f16_from_f32", f16_from_f32, isa, py::arg("x"), "float32 -> uint16 bits, to nearest even.");
}

}  // namespace kimi::ops
