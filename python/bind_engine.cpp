// Engine, Session and Sampler. Long calls release the GIL and ask Python for signals between chunks of work.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sys/utsname.h>

#include <atomic>
#include <chrono>

#include "backend/cpu/kernels/kernel_table.h"
#include "base/cpu_count.h"
#include "base/memory.h"
#include "bindings.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "model/config.h"
#include "model/weights.h"
#include "py_engine.h"

namespace py = pybind11;

namespace kimi {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

// Runs a call without the GIL; stops it when a signal handler raises (main thread) or the progress callback does.
class Guarded final : public Interrupt {
 public:
  explicit Guarded(py::object progress) : progress_(std::move(progress)) {
    const py::module_ threading = py::module_::import("threading");
    main_thread_ = threading.attr("current_thread")().is(threading.attr("main_thread")());
  }

  template <typename Body>
  void run(const Body& body) {
    try {
      py::gil_scoped_release release;
      body();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::cancelled && raised_) std::rethrow_exception(raised_);
      throw;
    }
    if (raised_) std::rethrow_exception(raised_);
  }

  bool stop_requested() override {
    if (raised_) return true;
    if (!main_thread_) return false;
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) keep_error();
    return raised_ != nullptr;
  }

  Progress callback() {
    if (progress_.is_none()) return {};
    return [this](int64_t done, int64_t total) {
      const auto now = std::chrono::steady_clock::now();
      if (raised_ || (done != 0 && done != total && now - last_ < std::chrono::milliseconds(50))) return;
      last_ = now;
      py::gil_scoped_acquire acquire;
      try {
        progress_(done, total);
      } catch (py::error_already_set&) {
        raised_ = std::current_exception();
      }
    };
  }

 private:
  void keep_error() {
    try {
      throw py::error_already_set();
    } catch (...) {
      raised_ = std::current_exception();
    }
  }
  py::object progress_;
  bool main_thread_;
  std::exception_ptr raised_;
  std::chrono::steady_clock::time_point last_{};
};

struct PySession {
  std::shared_ptr<PyEngine> owner;
  std::unique_ptr<Session> session;
  Session& get() const {
    owner->get();
    return *session;
  }
};

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
  d["kv_bytes_per_token"] =
      t.num_hidden_layers * (t.kv_lora_rank + t.qk_rope_head_dim) * (engine.default_kv_type() == KvType::f32 ? 4 : 2);
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
  d["isa"] = std::string(engine.backend().name()).substr(4);
  d["backend"] = engine.backend().name();
  d["n_threads"] = engine.backend().n_threads();
  d["warnings"] = engine.warnings();
  return d;
}

// A GGUFFile of Python's that keeps the engine open instead of the file.
std::shared_ptr<gguf::File> shared_file(const std::shared_ptr<Engine>& engine, const gguf::File* file) {
  return {engine, const_cast<gguf::File*>(file)};
}

Pixels pixels_of(const py::array& array) {
  KIMI_CHECK(py::isinstance<py::array_t<uint8_t>>(array) && array.ndim() == 3 && array.shape(2) == 3, ErrorKind::bad_request,
             "request.pixels", "pixels must be a uint8 array of shape [H, W, 3]");
  KIMI_CHECK((array.flags() & py::array::c_style) != 0, ErrorKind::bad_request, "request.pixels",
             "pixels must be contiguous: pass numpy.ascontiguousarray(pixels)");
  return {static_cast<const uint8_t*>(array.data()), array.shape(0), array.shape(1)};
}

FloatArray encode(PyEngine& self, const py::array& array, py::object progress, bool tower_only) {
  const std::shared_ptr<Engine> engine = self.engine;
  const VisionConfig* vision = self.get().vision();
  const Pixels pixels = pixels_of(array);
  Guarded guarded(std::move(progress));
  if (!vision) self.get().encode_image(pixels, {}, nullptr, nullptr);  // throws what is missing
  check_pixels(*vision, pixels);
  const int64_t patches = count_patches(*vision, pixels);
  FloatArray out({tower_only ? patches : patches / (vision->merge * vision->merge),
                  tower_only ? vision->hidden_size : vision->text_hidden_size});
  float* data = out.mutable_data();
  const Progress callback = guarded.callback();
  guarded.run([&] {
    tower_only ? engine->vision_tower(pixels, callback, &guarded, data) : engine->encode_image(pixels, callback, &guarded, data);
  });
  return out;
}

Logits parse_logits(const std::string& text) {
  if (text == "none") return Logits::none;
  if (text == "last") return Logits::last;
  if (text == "all") return Logits::all;
  fail(ErrorKind::bad_request, "request.logits", "logits is \"%s\", expected none, last or all", text.c_str());
}

Part part_of(const py::array& array, int64_t hidden) {
  KIMI_CHECK((array.flags() & py::array::c_style) != 0, ErrorKind::bad_request, "request.part",
             "a part must be contiguous: pass numpy.ascontiguousarray(part)");
  Part part;
  if (py::isinstance<py::array_t<int32_t>>(array) && array.ndim() == 1) {
    part.ids = static_cast<const int32_t*>(array.data());
  } else {
    KIMI_CHECK(py::isinstance<py::array_t<float>>(array) && array.ndim() == 2 && array.shape(1) == hidden, ErrorKind::bad_request,
               "request.part", "a part must be int32 token ids of shape [n] or float32 embeddings of shape [n, %lld]",
               static_cast<long long>(hidden));
    part.embeddings = static_cast<const float*>(array.data());
  }
  part.n = array.shape(0);
  return part;
}

// Whether each row is expanded, [n] of bool; None: as the pages say.
std::vector<RowForm> forms_of(const py::object& expanded) {
  if (expanded.is_none()) return {};
  KIMI_CHECK(py::isinstance<py::array_t<bool>>(expanded), ErrorKind::bad_request, "request.forms",
             "expanded must be an array of bool, one for each row");
  const auto rows = py::cast<py::array_t<bool, py::array::c_style>>(expanded);
  KIMI_CHECK(rows.ndim() == 1, ErrorKind::bad_request, "request.forms", "expanded must have one dimension, a value for each row");
  std::vector<RowForm> forms;
  for (py::ssize_t i = 0; i < rows.size(); ++i) forms.push_back(rows.data()[i] ? RowForm::expanded : RowForm::absorbed);
  return forms;
}

// What the context check of the engine would say, before memory for logits is taken.
void check_room(const Session& session, int64_t n) {
  KIMI_CHECK(n > 0, ErrorKind::bad_request, "request.empty", "a step needs at least one token");
  KIMI_CHECK(n <= session.n_ctx() - session.n_past(), ErrorKind::context_full, "context.full",
             "%lld new tokens after %lld do not fit the context of %lld: use a larger context (n_ctx), a shorter text or smaller "
             "pictures",
             static_cast<long long>(n), static_cast<long long>(session.n_past()), static_cast<long long>(session.n_ctx()));
}

std::vector<py::object> run_step(Engine& engine, std::vector<Slice>& slices, int64_t chunk, py::object progress) {
  const int64_t vocab = engine.text().vocab_size;
  std::vector<py::object> results;
  for (Slice& slice : slices) {
    const int64_t n = slice.n();
    check_room(*slice.session, n);
    if (slice.want == Logits::none) {
      results.push_back(py::none());
    } else {
      FloatArray out = slice.want == Logits::all ? FloatArray({n, vocab}) : FloatArray({vocab});
      slice.logits = out.mutable_data();
      results.push_back(std::move(out));
    }
  }
  Guarded guarded(std::move(progress));
  const Progress callback = guarded.callback();
  guarded.run([&] { engine.step(slices, chunk, callback, &guarded); });
  return results;
}

py::object prefill(PySession& self, const std::vector<py::array>& arrays, const std::string& logits, py::object progress,
                   int64_t chunk, const py::object& expanded) {
  Session& session = self.get();
  const std::shared_ptr<Engine> engine = session.engine_ptr();
  Slice slice{&session, {}, parse_logits(logits), nullptr, forms_of(expanded)};
  for (const py::array& array : arrays) slice.parts.push_back(part_of(array, engine->text().hidden_size));
  std::vector<Slice> slices = {slice};
  return run_step(*engine, slices, chunk, std::move(progress))[0];
}

std::vector<py::object> step(PyEngine& self, const std::vector<std::tuple<PySession*, py::array, std::string>>& items,
                             const std::optional<std::vector<py::object>>& expanded) {
  const std::shared_ptr<Engine> engine = self.engine;
  self.get();
  KIMI_CHECK(!expanded || expanded->size() == items.size(), ErrorKind::bad_request, "request.forms",
             "expanded must have an array or None for each slice");
  std::vector<Slice> slices;
  for (const auto& [session, array, logits] : items)
    slices.push_back({&session->get(),
                      {part_of(array, engine->text().hidden_size)},
                      parse_logits(logits),
                      nullptr,
                      expanded ? forms_of((*expanded)[slices.size()]) : std::vector<RowForm>{}});
  return run_step(*engine, slices, 0, py::none());
}

void decode(PySession& self, int32_t token) {
  Session& session = self.get();
  const std::shared_ptr<Engine> engine = session.engine_ptr();
  std::vector<Slice> slices = {{&session, {{&token, nullptr, 1}}, Logits::last, nullptr, {RowForm::absorbed}}};
  Guarded guarded{py::object(py::none())};
  guarded.run([&] { engine->step(slices, 0, {}, &guarded); });
}

const std::vector<float>& last_logits(const Session& session) {
  KIMI_CHECK(!session.logits().empty(), ErrorKind::bad_request, "request.no_logits",
             "the session has no logits yet: prefill something first");
  return session.logits();
}

py::dict cpu_info() {
  const CpuCount cpus = count_cpus();
  const MemoryInfo memory = memory_info();
  py::dict d;
  d["online"] = cpus.online;
  d["affinity"] = cpus.affinity;
  d["physical_cores"] = cpus.physical_cores;
  d["quota"] = cpus.quota;
  d["threads"] = cpus.threads;
  d["memory_total"] = memory.total;
  d["memory_available"] = memory.available;
  d["memory_cgroup_limit"] = memory.cgroup_limit;
  utsname name{};
  uname(&name);
  d["machine"] = std::string(name.machine);
  return d;
}

py::list isas() {
  py::list list;
  int count;
  const cpu::Isa* all = cpu::all_isas(&count);
  for (int i = 0; i < count; ++i) {
    py::dict d;
    d["name"] = all[i].name;
    d["requires"] = all[i].requires_features;
    d["supported"] = all[i].supported;
    list.append(d);
  }
  return list;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<PyEngine, std::shared_ptr<PyEngine>>(m, "Engine", "Files, weights and a backend; immutable.")
      .def(py::init([](const std::string& path, std::optional<std::string> mmproj, int n_threads, const std::string& isa,
                       const std::string& activations) {
             const char* forced = std::getenv("KIMI_VL_CPU_ISA");
             KIMI_CHECK(activations == "int8" || activations == "float", ErrorKind::bad_request, "request.activations",
                        "activations is \"%s\", expected int8 or float", activations.c_str());
             const EngineOptions options{mmproj.value_or(""),
                                         {n_threads, isa == "auto" && forced && *forced ? forced : isa, activations == "float"}};
             auto self = std::make_shared<PyEngine>();
             py::gil_scoped_release release;
             self->engine = std::make_shared<Engine>(path, options);
             return self;
           }),
           py::arg("path"), py::arg("mmproj") = py::none(), py::arg("n_threads") = 0, py::arg("isa") = "auto",
           py::arg("activations") = "int8")
      .def_property_readonly("config", [](const PyEngine& self) { return config_dict(self.get()); })
      .def_property_readonly("gguf", [](const PyEngine& self) { return shared_file(self.engine, &self.get().file()); })
      .def_property_readonly("vision_gguf",
                             [](const PyEngine& self) -> py::object {
                               const gguf::File* file = self.get().vision_file();
                               return file ? py::cast(shared_file(self.engine, file)) : py::object(py::none());
                             })
      .def(
          "vision_tower",
          [](PyEngine& self, const py::array& pixels, py::object progress) {
            return encode(self, pixels, std::move(progress), true);
          },
          py::arg("pixels"), py::arg("progress") = py::none())
      .def(
          "encode_image",
          [](PyEngine& self, const py::array& pixels, py::object progress) {
            return encode(self, pixels, std::move(progress), false);
          },
          py::arg("pixels"), py::arg("progress") = py::none())
      .def("step", step, py::arg("slices"), py::arg("expanded") = py::none())
      .def("close", [](PyEngine& self) { self.engine.reset(); });

  py::class_<Sampler>(m, "Sampler", "Samples the next token.")
      .def(py::init([](uint64_t seed, float temperature, int64_t top_k, float top_p, float min_p, float repeat_penalty,
                       int64_t repeat_last_n) {
             return std::make_unique<Sampler>(
                 SamplerOptions{seed, temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n});
           }),
           py::arg("seed") = 0, py::arg("temperature") = 1.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f,
           py::arg("min_p") = 0.0f, py::arg("repeat_penalty") = 1.0f, py::arg("repeat_last_n") = 64)
      .def(
          "sample",
          [](Sampler& self, const FloatArray& logits) {
            KIMI_CHECK(logits.ndim() == 1 && logits.size() > 0, ErrorKind::bad_request, "request.logits",
                       "logits must be a float32 array of shape [n_vocab]");
            return self.sample({logits.data(), static_cast<size_t>(logits.size())});
          },
          py::arg("logits"))
      .def("accept", &Sampler::accept, py::arg("token"));
  py::dict limits;
  const auto add_limits = [&limits](const char* name, const auto& allowed) {
    limits[name] = py::make_tuple(allowed.low, allowed.high);
  };
  add_limits("temperature", SamplerLimits::temperature);
  add_limits("top_k", SamplerLimits::top_k);
  add_limits("top_p", SamplerLimits::top_p);
  add_limits("min_p", SamplerLimits::min_p);
  add_limits("repeat_penalty", SamplerLimits::repeat_penalty);
  add_limits("repeat_last_n", SamplerLimits::repeat_last_n);
  m.attr("SAMPLER_LIMITS") = limits;

  py::class_<PySession>(m, "Session", "One mutable timeline with its cache.")
      .def(py::init([](std::shared_ptr<PyEngine> engine, int64_t n_ctx, const std::string& kv_type) {
             engine->get();
             std::optional<KvType> type;
             if (kv_type == "f16") type = KvType::f16;
             if (kv_type == "f32") type = KvType::f32;
             if (kv_type == "q8_0") type = KvType::q8_0;
             KIMI_CHECK(type || kv_type == "auto", ErrorKind::bad_request, "request.kv_type",
                        "kv_type is \"%s\", expected auto, f16, q8_0 or f32", kv_type.c_str());
             auto self = std::make_unique<PySession>();
             self->session = std::make_unique<Session>(engine->engine, n_ctx, type);
             self->owner = std::move(engine);
             return self;
           }),
           py::arg("engine"), py::arg("n_ctx"), py::arg("kv_type") = "auto")
      .def_property_readonly("n_past", [](const PySession& self) { return self.get().n_past(); })
      .def_property_readonly("n_ctx", [](const PySession& self) { return self.get().n_ctx(); })
      .def_property_readonly("kv_bytes", [](const PySession& self) { return self.get().cache().bytes(); })
      .def("prefill", prefill, py::arg("parts"), py::arg("logits") = "last", py::arg("progress") = py::none(),
           py::arg("chunk") = 0, py::arg("expanded") = py::none())
      .def(
          "truncate", [](PySession& self, int64_t n_past) { self.get().truncate(n_past); }, py::arg("n_past"))
      .def("decode", decode, py::arg("token"))
      .def(
          "sample",
          [](PySession& self, Sampler& sampler) {
            const int32_t token = sampler.sample(last_logits(self.get()));
            sampler.accept(token);
            return token;
          },
          py::arg("sampler"))
      .def_property_readonly("logits", [](const PySession& self) {
        const std::vector<float>& logits = last_logits(self.get());
        return FloatArray(static_cast<py::ssize_t>(logits.size()), logits.data());
      });

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
  m.attr("PAGE_POSITIONS") = kPagePositions;
  m.def("isas", isas, "Instruction sets: name, requires, supported; best first.");
  m.def("cpu_info", cpu_info, "Processors and memory that this process may use.");
  m.def("cpu_count", [] { return count_cpus().threads; }, "The default number of threads.");
}

}  // namespace kimi
