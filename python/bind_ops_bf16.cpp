// _core.ops: the bf16 kernels of a kernel table. Numbers are uint16 bits; every function gives None where the instruction set has
// no such kernels.
#include <algorithm>

#include "base/aligned_buffer.h"
#include "ops_args.h"

namespace kimi::ops {
namespace {

// The table, or nullptr where it has no bf16.
const cpu::KernelTable* bf16_of(const std::string& isa) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  return table.attention_block_bf16 ? &table : nullptr;
}

py::object bf16_from_f32(const std::string& isa, const py::object& x_object) {
  const cpu::KernelTable* table = bf16_of(isa);
  if (!table) return py::none();
  const auto x = take<float>(x_object, "x", {kAny});
  auto out = make<uint16_t>({x.size()});
  table->bf16_from_f32_row(x.data(), x.size(), out.mutable_data());
  return out;
}

py::object bf16_pairs_from_f32(const std::string& isa, const py::object& x_object, float scale) {
  const cpu::KernelTable* table = bf16_of(isa);
  if (!table) return py::none();
  const auto x = take<float>(x_object, "x", {kAny, kAny});
  auto out = make<uint16_t>({(x.shape(0) + 1) / 2, x.shape(1), 2});
  table->bf16_pairs_from_f32(x.data(), x.shape(1), x.shape(0), x.shape(1), scale, out.mutable_data(), x.shape(1));
  return out;
}

py::object pack_bf16(const std::string& isa, const std::string& type, const py::object& w_object, int64_t k) {
  const cpu::KernelTable* table = bf16_of(isa);
  const quant::Format& format = format_named(type);
  const auto pack = table ? table->pack_bf16[index_of(format)] : nullptr;
  if (!pack) return py::none();
  const auto given = take<uint8_t>(w_object, "w", {kAny, kAny});
  check(k >= 0 && k % 2 == 0 && 2 * k <= given.shape(1), "k: expected an even number of elements that lie in the rows of w");
  check(given.shape(0) <= table->tile_lanes,
        "w: " + std::to_string(given.shape(0)) + " rows, a panel holds " + std::to_string(table->tile_lanes));
  const std::vector<uint8_t> w(given.data(),
                               given.data() + given.size());  // not a byte more: a sanitizer sees what is read beyond
  auto out = make<uint16_t>({k / 2, table->tile_lanes, 2});
  pack(w.data(), given.shape(1), given.shape(0), k, out.mutable_data());
  return out;
}

py::object gemm_bf16(const std::string& isa, const py::object& a_object, const py::object& b_object, const std::string& into) {
  const cpu::KernelTable* table = bf16_of(isa);
  if (!table) return py::none();
  const int64_t lanes = table->tile_lanes;
  const auto b = take<uint16_t>(b_object, "b", {kAny, lanes, 2});
  const int64_t k = 2 * b.shape(0);
  const auto a = take<uint16_t>(a_object, "a", {kAny, k});
  const int64_t m = a.shape(0);
  if (into == "floats") {
    auto floats = make<float>({m, lanes});
    table->gemm_bf16(a.data(), k, b.data(), lanes, k, m, floats.mutable_data(), lanes);
    return floats;
  }
  check(into == "rows" || into == "pairs", "into: expected floats, rows or pairs");
  const bool pairs = into == "pairs";
  auto out = pairs ? make<uint16_t>({(m + 1) / 2, lanes, 2}) : make<uint16_t>({m, lanes});
  (pairs ? table->gemm_bf16_pairs : table->gemm_bf16_rows)(a.data(), k, b.data(), lanes, k, m, out.mutable_data(), lanes);
  return out;
}

// What both attention kernels are given beside their numbers, and give back.
struct Queries {
  py::array_t<float> m, l, o_t;  // copies of the state, o_t [dv, lanes]
  py::array_t<int32_t> last_key;
  bool causal;
  int64_t lanes, dv;

  Queries(const cpu::KernelTable& table, int64_t n_lanes, bool may_be_half, const py::object& last_key_object,
          const py::object& state)
      : causal(!last_key_object.is_none()), lanes(n_lanes) {
    check(lanes == table.tile_lanes || (may_be_half && lanes == table.tile_lanes / 2),
          "q_t: " + std::to_string(lanes) + " lanes");
    const auto before = py::cast<py::tuple>(state);
    check(before.size() == 3, "state: expected (m, l, o_t)");
    m = copied(take<float>(before[0], "m", {lanes}));
    l = copied(take<float>(before[1], "l", {lanes}));
    o_t = copied(take<float>(before[2], "o_t", {kAny, lanes}));
    dv = o_t.shape(0);
    if (causal) last_key = take<int32_t>(last_key_object, "last_key", {lanes});
  }
  static py::array_t<float> copied(const py::array_t<float>& x) {
    return py::array_t<float>(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()), x.data());
  }
  template <typename Block>
  void fill(Block* block, int64_t n_keys, int64_t key0) {
    check(n_keys >= 1 && n_keys <= cpu::kMaxAttentionKeys, std::to_string(n_keys) + " keys in one block");
    block->lanes = lanes;
    block->dv = dv;
    block->n_keys = n_keys;
    block->key0 = key0;
    block->last_key = causal ? last_key.data() : nullptr;
    block->m = m.mutable_data();
    block->l = l.mutable_data();
    block->o_t = o_t.mutable_data();
  }
  py::tuple state() const { return py::make_tuple(m, l, o_t); }
};

py::object attention_block_bf16(const std::string& isa, const py::object& q_object, const py::object& k1_object,
                                const py::object& k2_object, const py::object& v_object, int64_t key0, const py::object& last_key,
                                const py::object& state) {
  const cpu::KernelTable* table = bf16_of(isa);
  if (!table) return py::none();
  const auto q = take<uint16_t>(q_object, "q_t", {kAny, kAny, 2});
  Queries queries(*table, q.shape(1), false, last_key, state);
  const auto k1 = take<uint16_t>(k1_object, "k1", {kAny, kAny}), k2 = take<uint16_t>(k2_object, "k2", {k1.shape(0), kAny});
  check(k1.shape(1) % 2 == 0 && k2.shape(1) % 2 == 0 && k1.shape(1) + k2.shape(1) == 2 * q.shape(0),
        "k1, k2: columns of q_t, pair by pair");
  const auto v = take<uint16_t>(v_object, "v", {(k1.shape(0) + 1) / 2, queries.dv, 2});
  AlignedBuffer<float> scores(static_cast<size_t>(cpu::kMaxAttentionKeys * queries.lanes));
  cpu::AttentionBlockBf16 block{};
  queries.fill(&block, k1.shape(0), key0);
  block.q_t = q.data();
  block.k1 = k1.data();
  block.k2 = k2.data();
  block.v = v.data();
  block.dk1 = block.ldk1 = k1.shape(1);
  block.dk2 = block.ldk2 = k2.shape(1);
  block.ldv = queries.dv;
  block.scores = scores.data();
  table->attention_block_bf16(block);
  return queries.state();
}

py::object latent_block_f16(const std::string& isa, const py::object& q_object, const py::object& rows_object, int64_t key0,
                            const py::object& last_key, const py::object& state) {
  const cpu::KernelTable* table = bf16_of(isa);
  if (!table || !table->latent_block_f16) return py::none();
  const auto q = take<uint16_t>(q_object, "q_t", {kAny, kAny, 2});
  Queries queries(*table, q.shape(1), true, last_key, state);
  const auto given = take<uint16_t>(rows_object, "rows", {kAny, 2 * q.shape(0)});
  check(queries.dv <= given.shape(1), "o_t: more values than numbers in a row");
  const std::vector<uint16_t> rows(given.data(),
                                   given.data() + given.size());  // not a byte more: a sanitizer sees what is read beyond
  cpu::LatentBlockF16 block{};
  queries.fill(&block, given.shape(0), key0);
  block.q_t = q.data();
  block.rows = rows.data();
  block.rank = queries.dv;
  block.rope = given.shape(1) - queries.dv;
  AlignedBuffer<float> scratch(static_cast<size_t>(cpu::latent_f16_scratch_floats(queries.lanes, block.rank, block.rope)));
  block.scratch = scratch.data();
  table->latent_block_f16(block);
  return queries.state();
}

}  // namespace

void bind_bf16(py::module_& m) {
  const auto isa = py::arg("isa");
  m.def("bf16_from_f32", bf16_from_f32, isa, py::arg("x"), "float32 [n] -> bits, to nearest even.");
  m.def("bf16_pairs_from_f32", bf16_pairs_from_f32, isa, py::arg("x"), py::arg("scale"),
        "scale * x, float32 [n_rows, n_cols], as bits [(n_rows + 1) / 2, n_cols, 2]; the partner of an odd last row is zeros.");
  m.def("pack_bf16", pack_bf16, isa, py::arg("type"), py::arg("w"), py::arg("k"),
        "w uint8 [n_rows, row_bytes], its first k elements -> bits [k / 2, tile_lanes, 2]; None for types without such a kernel, "
        "too.");
  m.def("gemm_bf16", gemm_bf16, isa, py::arg("a"), py::arg("b"), py::arg("into"),
        "a bits [m, k], b bits [k / 2, tile_lanes, 2] -> the product: floats [m, tile_lanes], rows: bits of it, pairs: [(m + 1) "
        "/ 2, tile_lanes, 2].");
  m.def("attention_block_bf16", attention_block_bf16, isa, py::arg("q_t"), py::arg("k1"), py::arg("k2"), py::arg("v"),
        py::arg("key0"), py::arg("last_key"), py::arg("state"),
        "q_t bits [dk / 2, lanes, 2], k1 [n, dk1], k2 [n, dk2], v [(n + 1) / 2, dv, 2], state (m, l, o_t) -> (m, l, o_t).");
  m.def("latent_block_f16", latent_block_f16, isa, py::arg("q_t"), py::arg("rows"), py::arg("key0"), py::arg("last_key"),
        py::arg("state"),
        "q_t bf16 bits [width / 2, lanes, 2], rows f16 bits [n_keys, width], state (m, l, o_t [rank, lanes]) -> (m, l, o_t).");
}

}  // namespace kimi::ops
