// PrefillTask, ImageTask and the methods of Engine that begin them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "call_args.h"
#include "engine/task.h"
#include "guarded.h"
#include "py_session.h"

namespace py = pybind11;

namespace kimi {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

// A task with what it reads and writes. `owner`: the session or the engine.
template <typename Work>
struct PyTask {
  std::shared_ptr<PyEngine> engine;
  py::object owner;
  std::vector<py::array> arrays;          // pixels or embeddings, read by the task
  std::vector<std::vector<int32_t>> ids;  // copies: they were checked
  py::object out;                         // the result, filled by the task
  std::unique_ptr<Work> work;

  ~PyTask() {
    const py::gil_scoped_release release;  // waits for the engine's call under way
    work.reset();
  }
};
using PyPrefill = PyTask<PrefillTask>;
using PyImage = PyTask<ImageTask>;

template <typename Work>
bool advance(PyTask<Work>& self, int64_t n) {
  self.engine->get();
  bool done = false;
  Guarded guarded{py::object(py::none())};
  guarded.run([&] { done = self.work->advance(n, &guarded); });
  return done;
}

template <typename Work>
void cancel(PyTask<Work>& self) {
  const py::gil_scoped_release release;
  self.work->cancel();
}

template <typename Work>
py::object result(const PyTask<Work>& self) {
  KIMI_CHECK(self.work->done(), ErrorKind::bad_request, "task.unfinished", "the task is not done: advance it to its end first");
  return self.out;
}

std::unique_ptr<PyPrefill> begin_prefill(std::shared_ptr<PyEngine> engine, py::object session,
                                         const std::vector<py::array>& arrays, const std::string& logits,
                                         const py::object& expanded, int64_t chunk) {
  engine->get();
  const std::shared_ptr<Engine> core = engine->engine;
  auto self = std::make_unique<PyPrefill>();
  Slice slice{&py::cast<PySession&>(session).get(), {}, parse_logits(logits), nullptr, forms_of(expanded)};
  for (const py::array& array : arrays) {
    Part part = part_of(array, core->text().hidden_size);
    if (part.ids)
      part.ids = self->ids.emplace_back(part.ids, part.ids + part.n).data();
    else
      self->arrays.push_back(array);
    slice.parts.push_back(part);
  }
  self->out = room_for_logits(&slice, core->text().vocab_size);
  {
    const py::gil_scoped_release release;
    self->work = std::make_unique<PrefillTask>(core, std::move(slice), chunk);
  }
  self->engine = std::move(engine);
  self->owner = std::move(session);
  return self;
}

std::unique_ptr<PyImage> begin_image(std::shared_ptr<PyEngine> engine, const py::array& array, int32_t adapter) {
  const Engine& core = engine->get();
  const Picture picture = picture_of(core, array);
  auto self = std::make_unique<PyImage>();
  self->arrays = {array};
  const VisionConfig& vision = core.require_vision();
  FloatArray out({picture.n_patches() / (vision.merge * vision.merge), vision.text_hidden_size});
  self->work = std::make_unique<ImageTask>(engine->engine, picture, adapter, out.mutable_data());
  self->out = std::move(out);
  self->engine = std::move(engine);
  return self;
}

}  // namespace

void bind_task(py::module_& m) {
  py::class_<PyPrefill>(m, "PrefillTask", "A prompt on its way through the decoder.")
      .def("advance", advance<PrefillTask>, py::arg("n_layers") = 1)
      .def("cancel", cancel<PrefillTask>)
      .def_property_readonly("done", [](const PyPrefill& self) { return self.work->done(); })
      .def_property_readonly("n_done", [](const PyPrefill& self) { return self.work->n_done(); })
      .def_property_readonly("logits", result<PrefillTask>);
  py::class_<PyImage>(m, "ImageTask", "A picture on its way through MoonViT and the projector.")
      .def("advance", advance<ImageTask>, py::arg("n_blocks") = 1)
      .def("cancel", cancel<ImageTask>)
      .def_property_readonly("done", [](const PyImage& self) { return self.work->done(); })
      .def_property_readonly("result", result<ImageTask>);

  // Methods of Engine, which is known already.
  const py::object engine = m.attr("Engine");
  engine.attr("begin_prefill") =
      py::cpp_function(begin_prefill, py::name("begin_prefill"), py::is_method(engine), py::arg("session"), py::arg("parts"),
                       py::arg("logits") = "last", py::arg("expanded") = py::none(), py::arg("chunk") = 0);
  engine.attr("begin_image") = py::cpp_function(begin_image, py::name("begin_image"), py::is_method(engine), py::arg("pixels"),
                                                py::arg("adapter") = kNoAdapter);
}

}  // namespace kimi
