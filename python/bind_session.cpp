// Session, Sampler and the step of several sessions.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "call_args.h"
#include "engine/decode.h"
#include "engine/sampler.h"
#include "engine/session.h"
#include "guarded.h"
#include "py_session.h"

namespace py = pybind11;

namespace kimi {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

std::vector<py::object> run_step(Engine& engine, std::vector<Slice>& slices, int64_t chunk, py::object progress) {
  std::vector<py::object> results;
  for (Slice& slice : slices) results.push_back(room_for_logits(&slice, engine.text().vocab_size));
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

// A row of Engine.decode: (session, token or tokens, sampler or None). The session stays alive for the call.
struct PyDecodeRow {
  py::object session;
  py::object sampler;
  bool drafts = false;
  DecodeRow row{};
};

PyDecodeRow row_of(const py::tuple& item) {
  if (item.size() != 3) throw py::type_error("a row is a tuple (session, token or tokens, sampler or None)");
  PyDecodeRow found{item[0], item[2]};
  found.drafts = !py::isinstance<py::int_>(item[1]) && !PyIndex_Check(py::object(item[1]).ptr());
  if (found.drafts)
    found.row.tokens = py::cast<std::vector<int32_t>>(item[1]);
  else
    found.row.tokens = {py::cast<int32_t>(item[1])};
  if (!found.sampler.is_none()) found.row.sampler = &py::cast<Sampler&>(found.sampler);
  const auto& session = py::cast<const PySession&>(found.session);
  try {
    found.row.session = &session.get();
  } catch (const Error&) {  // closed
    found.row.error = std::current_exception();
  }
  return found;
}

py::list decode_rows(PyEngine& self, const std::vector<py::tuple>& items) {
  std::vector<PyDecodeRow> all;
  for (const py::tuple& item : items) all.push_back(row_of(item));
  std::vector<DecodeRow> rows;
  for (const PyDecodeRow& one : all)
    if (!one.row.error) rows.push_back(one.row);
  if (!rows.empty()) {
    self.get();
    const std::shared_ptr<Engine> engine = self.engine;
    Guarded guarded{py::object(py::none())};
    guarded.run([&] { engine->decode(rows, &guarded); });
  }
  py::list outcomes;
  auto done = rows.begin();
  for (PyDecodeRow& one : all) {
    const DecodeRow& row = one.row.error ? one.row : *done++;
    if (row.error)
      outcomes.append(python_error(row.error));
    else if (!row.sampler)
      outcomes.append(py::none());
    else if (one.drafts)
      outcomes.append(py::cast(row.sampled));
    else
      outcomes.append(row.sampled.front());
  }
  return outcomes;
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

}  // namespace

void bind_session(py::module_& m) {
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

  py::class_<PySession>(m, "Session", "One sequence of positions with its cache.")
      .def(py::init([](std::shared_ptr<PyEngine> engine, int64_t n_ctx, const std::string& kv_type, const PyPagePool* pool,
                       int32_t adapter) {
             engine->get();
             KIMI_CHECK(!pool || pool->owner == engine, ErrorKind::bad_request, "request.pool",
                        "the pool belongs to another model");
             auto self = std::make_unique<PySession>();
             self->session =
                 std::make_unique<Session>(engine->engine, n_ctx, parse_kv_type(kv_type), pool ? pool->pool : nullptr, adapter);
             self->owner = std::move(engine);
             return self;
           }),
           py::arg("engine"), py::arg("n_ctx"), py::arg("kv_type") = "auto", py::arg("pool") = py::none(),
           py::arg("adapter") = kNoAdapter)
      .def_property_readonly("n_past", [](const PySession& self) { return self.get().n_past(); })
      .def_property_readonly("n_ctx", [](const PySession& self) { return self.get().n_ctx(); })
      .def_property_readonly("kv_bytes", [](const PySession& self) { return self.get().kv_bytes(); })
      .def("prefill", prefill, py::arg("parts"), py::arg("logits") = "last", py::arg("progress") = py::none(),
           py::arg("chunk") = 0, py::arg("expanded") = py::none())
      .def(
          "truncate",
          [](PySession& self, int64_t n_past) {
            Session& session = self.get();
            const py::gil_scoped_release release;
            session.truncate(n_past);
          },
          py::arg("n_past"))
      .def("decode", decode, py::arg("token"))
      .def(
          "sample",
          [](PySession& self, Sampler& sampler) {
            const std::vector<float>& logits = last_logits(self.get());
            const py::gil_scoped_release release;
            const int32_t token = sampler.sample(logits);
            sampler.accept(token);
            return token;
          },
          py::arg("sampler"))
      .def_property_readonly("logits", [](const PySession& self) {
        const std::vector<float>& logits = last_logits(self.get());
        return FloatArray(static_cast<py::ssize_t>(logits.size()), logits.data());
      });

  // Methods of Engine: they name sessions, which are known only now.
  const py::object engine = m.attr("Engine");
  engine.attr("step") =
      py::cpp_function(step, py::name("step"), py::is_method(engine), py::arg("slices"), py::arg("expanded") = py::none());
  engine.attr("decode") = py::cpp_function(decode_rows, py::name("decode"), py::is_method(engine), py::arg("rows"));
}

}  // namespace kimi
