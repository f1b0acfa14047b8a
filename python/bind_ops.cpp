// _core.ops: every int8 kernel of a kernel table, callable by instruction set from a test. Not an API for people.
#include <algorithm>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/isa.h"
#include "bindings.h"
#include "ops_args.h"

namespace kimi {
namespace ops {

void bind_float(py::module_& m);  // bind_ops_float.cpp
void bind_bf16(py::module_& m);   // bind_ops_bf16.cpp

namespace {

// A Q8Rows and the array behind it.
struct Activations {
  py::array_t<cpu::Q8Block> blocks;
  cpu::Q8Rows rows;
  int64_t n;

  explicit Activations(const py::object& x) : blocks(take<cpu::Q8Block>(x, "x", {kAny, kAny})) {
    check(blocks.shape(1) > 0, "x: rows without elements");
    n = blocks.shape(0);
    rows = {const_cast<cpu::Q8Block*>(blocks.data()),
            32 * blocks.shape(1)};  // quantize_row fills what the other kernels read only
  }
};

void check_weights(const quant::Format& format, const py::array_t<uint8_t>& w, int64_t k) {
  check(!format.is_float(), std::string(format.name) + " is not a quantized type");
  check(k > 0 && k % format.block_elems == 0,
        "row length " + std::to_string(k) + " is not a multiple of the block of " + format.name);
  check(w.shape(1) >= format.row_bytes(k), "w: " + std::to_string(w.shape(1)) + " bytes a row, expected at least " +
                                               std::to_string(format.row_bytes(k)) + " for " + std::to_string(k) +
                                               " elements of " + format.name);
}

py::array_t<cpu::Q8Block> quantize_rows(const std::string& isa, const py::object& x_object) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  const auto x = take<float>(x_object, "x", {kAny, kAny});
  const int64_t n = x.shape(0), k = x.shape(1);
  check(k > 0 && k % 32 == 0, "x: row length " + std::to_string(k) + ", expected a positive multiple of 32");
  auto blocks = make<cpu::Q8Block>({n, k / 32});
  for (int64_t i = 0; i < n; ++i) table.quantize_row(x.data() + i * k, k, blocks.mutable_data() + i * (k / 32));
  return blocks;
}

py::array_t<float> gemv(const std::string& isa, const std::string& type, const py::object& w_object, const py::object& x_object) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  const quant::Format& format = format_named(type);
  const auto w = take<uint8_t>(w_object, "w", {kAny, kAny});
  const Activations x(x_object);
  check_weights(format, w, x.rows.k);
  auto out = make<float>({x.n, w.shape(0)});
  table.gemv_q8[index_of(format)](w.data(), w.shape(1), w.shape(0), x.rows, x.n, out.mutable_data(), w.shape(0), nullptr);
  return out;
}

// A panel and the memory behind it, as the backend keeps it: one panel of scratch per thread.
struct Panel {
  AlignedBuffer<uint8_t> q;
  AlignedBuffer<float> scale, min;
  cpu::PanelQ8 view{};

  Panel(int64_t k, int64_t lanes) : q(k * lanes), scale(k / 16 * lanes), min(k / 16 * lanes) {
    view.q = q.data();
    view.scale = scale.data();
    view.min = min.data();
  }
};

py::dict pack_panel(const std::string& isa, const std::string& type, const py::object& w_object, int64_t k) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  const quant::Format& format = format_named(type);
  const auto w = take<uint8_t>(w_object, "w", {kAny, kAny});
  check_weights(format, w, k);
  const int64_t lanes = table.panel_lanes;
  check(w.shape(0) <= lanes, "w: " + std::to_string(w.shape(0)) + " rows, a panel holds " + std::to_string(lanes));
  Panel panel(k, lanes);
  table.pack_panel_q8[index_of(format)](w.data(), w.shape(1), w.shape(0), k, &panel.view);
  const cpu::PanelQ8& view = panel.view;
  auto q = make<uint8_t>({k / 4, lanes, 4});
  auto scale = make<float>({k / view.group, lanes}), min = make<float>({k / view.group, lanes});
  std::copy_n(view.q, q.size(), q.mutable_data());
  std::copy_n(view.scale, scale.size(), scale.mutable_data());
  std::copy_n(view.min, min.size(), min.mutable_data());
  py::dict result;
  result["q"] = q;
  result["scale"] = scale;
  result["min"] = view.has_min ? py::object(min) : py::object(py::none());
  result["bias"] = view.bias;
  result["max_q"] = view.max_q;
  result["group"] = view.group;
  result["k"] = view.k;
  return result;
}

py::array_t<float> gemm(const std::string& isa, const std::string& type, const py::object& w_object, const py::object& x_object,
                        const py::object& rows_object) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  const quant::Format& format = format_named(type);
  const auto w = take<uint8_t>(w_object, "w", {kAny, kAny});
  const Activations x(x_object);
  check_weights(format, w, x.rows.k);
  const int64_t n_rows = w.shape(0), lanes = table.panel_lanes;
  py::array_t<int32_t> rows;
  int64_t n_x = x.n;
  if (!rows_object.is_none()) {
    rows = take<int32_t>(rows_object, "rows", {kAny});
    n_x = rows.shape(0);
    for (int64_t j = 0; j < n_x; ++j) {
      check(rows.at(j) >= 0 && rows.at(j) < x.n, "rows: entry " + std::to_string(j) + " is not a row of x");
    }
  }
  const int64_t n_panels = (n_rows + lanes - 1) / lanes;
  AlignedBuffer<float> wide(std::max<int64_t>(1, n_x * n_panels * lanes));
  Panel panel(x.rows.k, lanes);
  for (int64_t p = 0; p < n_panels; ++p) {
    const int64_t in_panel = std::min(lanes, n_rows - p * lanes);
    table.pack_panel_q8[index_of(format)](w.data() + p * lanes * w.shape(1), w.shape(1), in_panel, x.rows.k, &panel.view);
    table.gemm_panel_q8(panel.view, x.rows, rows_object.is_none() ? nullptr : rows.data(), n_x, wide.data() + p * lanes,
                        n_panels * lanes);
  }
  auto out = make<float>({n_x, n_rows});
  for (int64_t j = 0; j < n_x; ++j) std::copy_n(wide.data() + j * n_panels * lanes, n_rows, out.mutable_data() + j * n_rows);
  return out;
}

py::array_t<float> decode_row(const std::string& isa, const std::string& type, const py::object& raw_object, int64_t n) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  const quant::Format& format = format_named(type);
  const auto raw = take<uint8_t>(raw_object, "raw", {kAny});
  check(n >= 0 && n % format.block_elems == 0, "n: " + std::to_string(n) + " is not a multiple of the block of " + format.name);
  check(raw.size() >= format.row_bytes(n),
        "raw: " + std::to_string(raw.size()) + " bytes, expected " + std::to_string(format.row_bytes(n)));
  auto out = make<float>({n});
  table.decode_row[index_of(format)](raw.data(), out.mutable_data(), n);
  return out;
}

py::list supported_isas() {
  py::list names;
  for (const Isa& isa : isas())
    if (isa.supported) names.append(isa.name);
  return names;
}

template <typename Function>
uintptr_t address(Function* function) {
  return reinterpret_cast<uintptr_t>(function);
}

// Of the functions that fill a table, group by group as kernel_table.h has them.
py::dict addresses(const std::string& isa) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  py::dict groups;
  const auto add = [&](const char* group, auto*... functions) {
    if (!groups.contains(group)) groups[group] = py::list();
    auto list = py::cast<py::list>(groups[group]);
    (list.append(address(functions)), ...);
  };
  add("int8", table.quantize_row, table.gemm_panel_q8);
  add("float", table.gemm_f32, table.transpose_panel, table.f32_from_f16_row, table.f16_from_f32_row, table.f32_from_q8_row);
  for (int type = 0; type < cpu::kMaxTypes; ++type) {
    add("int8", table.gemv_q8[type], table.pack_panel_q8[type]);
    add("float", table.gemv_float[type], table.decode_row[type]);
    add("bf16 conversions", table.pack_bf16[type]);
  }
  add("attention", table.attention_block, table.latent_block_q8);
  add("bf16 conversions", table.bf16_from_f32_row, table.bf16_pairs_from_f32);
  add("bf16 products", table.attention_block_bf16, table.gemm_bf16, table.gemm_bf16_rows, table.gemm_bf16_pairs);
  add("bf16 latents", table.latent_block_f16);
  add("rows", table.rms_norm, table.layer_norm, table.silu_mul, table.gelu_tanh, table.gelu_erf, table.rotate_pairs,
      table.add_scaled);
  return groups;
}

py::dict sizes(const std::string& isa) {
  const cpu::KernelTable& table = cpu::select_kernels(isa.c_str());
  py::dict result;
  result["panel_lanes"] = table.panel_lanes;
  result["tile_lanes"] = table.tile_lanes;
  result["max_attention_keys"] = cpu::kMaxAttentionKeys;
  return result;
}

}  // namespace
}  // namespace ops

void bind_ops(pybind11::module_& parent) {
  namespace py = pybind11;
  PYBIND11_NUMPY_DTYPE(kimi::cpu::Q8Block, q, scale, sum, half_sum, isum, half_isum);
  py::module_ m = parent.def_submodule(
      "ops", "The kernels of each instruction set, for tests. First argument: the name of the instruction set.");
  m.def("isas", ops::supported_isas, "Names of the instruction sets that this processor runs, best first.");
  m.def("addresses", ops::addresses, py::arg("isa"),
        "Group of kernels -> addresses of its functions, 0 where there is none; instruction sets with the same share the code.");
  m.def("sizes", ops::sizes, py::arg("isa"), "panel_lanes, tile_lanes and max_attention_keys of a table.");
  m.def("quantize_rows", ops::quantize_rows, py::arg("isa"), py::arg("x"),
        "x float32 [n, k] -> a structured array [n, k/32] of blocks of 32: q int8 [32], scale, sum, half_sum [2], isum, "
        "half_isum [2].");
  m.def("gemv", ops::gemv, py::arg("isa"), py::arg("type"), py::arg("w"), py::arg("x"),
        "w uint8 [n_rows, row_bytes] (rows may be padded), x from quantize_rows -> float32 [n_x, n_rows].");
  m.def("pack_panel", ops::pack_panel, py::arg("isa"), py::arg("type"), py::arg("w"), py::arg("k"),
        "One panel: dict of q uint8 [k/4, lanes, 4] with bias and max_q, scale and min float32 [k/group, lanes] (min None "
        "without), group, k.");
  m.def("gemm", ops::gemm, py::arg("isa"), py::arg("type"), py::arg("w"), py::arg("x"), py::arg("rows") = py::none(),
        "As gemv, through panels; rows int32 [n]: the row of x that each output row takes.");
  m.def("decode_row", ops::decode_row, py::arg("isa"), py::arg("type"), py::arg("raw"), py::arg("n"),
        "raw uint8 -> float32 [n], exact.");
  ops::bind_float(m);
  ops::bind_bf16(m);
}

}  // namespace kimi
