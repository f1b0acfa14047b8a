// Engine, and the checks of files that opening one makes.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "call_args.h"
#include "engine/engine.h"
#include "guarded.h"
#include "model/config.h"
#include "model/weights.h"
#include "py_engine.h"

namespace py = pybind11;

namespace kimi {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

py::dict config_dict(const Engine& engine) {
  const TextConfig& t = engine.text();
  py::dict d;
  d["n_vocab"] = t.vocab_size;
  d["hidden_size"] = t.hidden_size;
  d["num_hidden_layers"] = t.num_hidden_layers;
  d["context_length"] = t.max_position_embeddings;
  d["num_attention_heads"] = t.num_attention_heads;
  d["kv_lora_rank"] = t.kv_lora_rank;
  d["qk_nope_head_dim"] = t.qk_nope_head_dim;
  d["qk_rope_head_dim"] = t.qk_rope_head_dim;
  d["v_head_dim"] = t.v_head_dim;
  d["n_routed_experts"] = t.n_routed_experts;
  d["num_experts_per_tok"] = t.num_experts_per_tok;
  d["n_shared_experts"] = t.n_shared_experts;
  d["first_k_dense_replace"] = t.first_k_dense_replace;
  d["kv_type"] = engine.default_kv_type() == KvType::f32 ? "f32" : "f16";
  d["has_vision"] = engine.vision() != nullptr;
  if (const VisionConfig* v = engine.vision()) {
    d["vision_hidden_size"] = v->hidden_size;
    d["vision_layers"] = v->num_hidden_layers;
    d["patch_size"] = v->patch_size;
    d["merge"] = v->merge;
    d["max_grid_side"] = v->max_grid_side;
    d["image_mean"] = std::vector<float>(v->image_mean, v->image_mean + 3);
    d["image_std"] = std::vector<float>(v->image_std, v->image_std + 3);
  }
  const auto name = engine.file().get_string("general.name");
  d["name"] = name ? py::object(py::reinterpret_steal<py::object>(
                         PyUnicode_DecodeUTF8(name->data(), static_cast<Py_ssize_t>(name->size()), "replace")))
                   : py::object(py::str(""));
  d["weights_bytes"] = engine.file().file_bytes() +
                       (engine.vision_file() && engine.vision_file() != &engine.file() ? engine.vision_file()->file_bytes() : 0);
  d["isa"] = engine.backend().isa();
  d["backend"] = std::string(engine.backend().name()) + " " + engine.backend().isa();
  d["n_threads"] = engine.backend().n_threads();
  d["warnings"] = engine.warnings();
  return d;
}

// A GGUFFile of Python's that keeps the engine open instead of the file.
std::shared_ptr<gguf::File> shared_file(const std::shared_ptr<Engine>& engine, const gguf::File* file) {
  return {engine, const_cast<gguf::File*>(file)};
}

// (name, index, a [rank, cols], b [rank, rows] scaled) of each matrix.
using Change = std::tuple<std::string, int64_t, FloatArray, FloatArray>;

int32_t add_adapter(PyEngine& self, const std::vector<Change>& changes) {
  const std::shared_ptr<Engine> engine = self.engine;
  self.get();
  std::vector<AdapterFactors> factors;
  for (const auto& [name, index, a, b] : changes) {
    KIMI_CHECK(a.ndim() == 2 && b.ndim() == 2 && a.shape(0) == b.shape(0), ErrorKind::bad_request, "request.adapter",
               "%s: factors must be float32 arrays [rank, cols] and [rank, rows]", name.c_str());
    factors.push_back({name, index, a.shape(0), b.shape(1), a.shape(1), a.data(), b.data()});
  }
  const py::gil_scoped_release release;
  return engine->add_adapter(factors);
}

FloatArray encode(PyEngine& self, const py::array& array, py::object progress, bool tower_only, int32_t adapter) {
  const std::shared_ptr<Engine> engine = self.engine;
  const Picture picture = picture_of(self.get(), array);
  Guarded guarded(std::move(progress));
  const VisionConfig& vision = engine->require_vision();
  const int64_t patches = picture.n_patches();
  FloatArray out({tower_only ? patches : patches / (vision.merge * vision.merge),
                  tower_only ? vision.hidden_size : vision.text_hidden_size});
  float* data = out.mutable_data();
  const Progress callback = guarded.callback();
  guarded.run([&] {
    tower_only ? engine->vision_tower(picture, adapter, callback, &guarded, data)
               : engine->encode_image(picture, adapter, callback, &guarded, data);
  });
  return out;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<PyEngine, std::shared_ptr<PyEngine>>(m, "Engine", "Files, weights and a backend; immutable.")
      .def(py::init([](const std::string& path, std::optional<std::string> mmproj, int n_threads, const std::string& isa,
                       const std::string& activations, const std::string& backend, const std::string& library) {
             EngineOptions options{mmproj.value_or(""), backend};
             if (n_threads != 0) options.backend_options["n_threads"] = std::to_string(n_threads);
             if (isa != "auto") options.backend_options["isa"] = isa;
             if (activations != "int8") options.backend_options["activations"] = activations;
             if (!library.empty()) options.backend_options["library"] = library;
             auto self = std::make_shared<PyEngine>();
             py::gil_scoped_release release;
             self->engine = std::make_shared<Engine>(path, options);
             return self;
           }),
           py::arg("path"), py::arg("mmproj") = py::none(), py::arg("n_threads") = 0, py::arg("isa") = "auto",
           py::arg("activations") = "int8", py::arg("backend") = "cpu", py::arg("library") = "")
      .def_property_readonly("config", [](const PyEngine& self) { return config_dict(self.get()); })
      .def_property_readonly("gguf", [](const PyEngine& self) { return shared_file(self.engine, &self.get().file()); })
      .def_property_readonly("vision_gguf",
                             [](const PyEngine& self) -> py::object {
                               const gguf::File* file = self.get().vision_file();
                               return file ? py::cast(shared_file(self.engine, file)) : py::object(py::none());
                             })
      .def(
          "vision_tower",
          [](PyEngine& self, const py::array& pixels, py::object progress, int32_t adapter) {
            return encode(self, pixels, std::move(progress), true, adapter);
          },
          py::arg("pixels"), py::arg("progress") = py::none(), py::arg("adapter") = kNoAdapter)
      .def(
          "encode_image",
          [](PyEngine& self, const py::array& pixels, py::object progress, int32_t adapter) {
            return encode(self, pixels, std::move(progress), false, adapter);
          },
          py::arg("pixels"), py::arg("progress") = py::none(), py::arg("adapter") = kNoAdapter)
      .def("add_adapter", add_adapter, py::arg("changes"))
      .def_property_readonly("adapter_bytes", [](const PyEngine& self) { return self.get().adapters().bytes(); })
      .def("close", [](PyEngine& self) { self.engine.reset(); });

  m.def("backends", backend_names, "What Engine takes as backend: the names that this version knows, installed or not.");
  m.def(
      "describe_backend", [](const std::string& name) { return std::string(make_backend(name, {})->isa()); }, py::arg("name"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "backend_memory", [](const std::string& name) { return make_backend(name, {})->available_memory(); }, py::arg("name"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "check_text_model",
      [](const gguf::File& file) {
        py::gil_scoped_release released;
        TextConfig config = read_text_config(file);
        WeightStore store;
        load_text_weights(file, &config, &store);
        if (!has_vision(file)) return config.hidden_size;
        const VisionConfig vision = read_vision_config(file, config.hidden_size);
        load_vision_weights(file, vision, &store);
        return config.hidden_size;
      },
      py::arg("gguf"),
      "Raises what Engine would for this text model, with its vision part if it has one; returns its hidden size.");
  m.def(
      "check_vision_file",
      [](const gguf::File& file, std::optional<int64_t> hidden_size) {
        py::gil_scoped_release released;
        WeightStore store;
        const auto own = hidden_size ? std::nullopt : file.get_uint("clip.vision.projection_dim");
        load_vision_weights(file, read_vision_config(file, hidden_size.value_or(static_cast<int64_t>(own.value_or(0)))), &store);
      },
      py::arg("gguf"), py::arg("hidden_size") = py::none(),
      "Raises what Engine would for this vision file beside a text model of `hidden_size`; None: beside any.");
}

}  // namespace kimi
