// Importance: sums of squares of what every weight is multiplied with, over the calls of an engine.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>

#include "bindings.h"
#include "engine/importance.h"
#include "py_engine.h"

namespace py = pybind11;

namespace kimi {
namespace {

struct PyImportance {
  std::shared_ptr<Importance> importance;
  // Waits for a call that is running, which may be waiting for the GIL.
  void close() {
    std::shared_ptr<Importance> last = std::move(importance);
    py::gil_scoped_release release;
    last.reset();
  }
  ~PyImportance() {
    if (importance) close();
  }
};

std::vector<InputSums> totals(const PyImportance& self, bool with_sums) {
  const std::shared_ptr<Importance> importance = self.importance;
  KIMI_CHECK(importance, ErrorKind::bad_request, "importance.closed", "this importance matrix is closed: make another one");
  py::gil_scoped_release release;
  return importance->totals(with_sums);
}

py::array_t<int64_t> counts_of(const InputSums& one) {
  return py::array_t<int64_t>(static_cast<py::ssize_t>(one.n_matrices), one.counts.data());
}

py::dict sums(const PyImportance& self) {
  py::dict found;
  for (const InputSums& one : totals(self, true)) {
    py::array_t<double> values({one.n_matrices, one.n_cols});
    std::copy(one.sums.begin(), one.sums.end(), values.mutable_data());
    found[py::str(one.name)] = py::make_tuple(std::move(values), counts_of(one));
  }
  return found;
}

py::dict counts(const PyImportance& self) {
  py::dict found;
  for (const InputSums& one : totals(self, false)) found[py::str(one.name)] = counts_of(one);
  return found;
}

}  // namespace

void bind_imatrix(py::module_& m) {
  py::class_<PyImportance>(m, "Importance",
                           "Sums of squares of what every weight of an engine is multiplied with, from now on until close().")
      .def(py::init([](const PyEngine& engine) {
             engine.get();
             auto self = std::make_unique<PyImportance>();
             const std::shared_ptr<Engine> watched = engine.engine;
             py::gil_scoped_release release;
             self->importance = std::make_shared<Importance>(watched);
             return self;
           }),
           py::arg("engine"))
      .def("sums", sums, "Tensor name -> (sums float64 [n_matrices, n_cols], counts int64 [n_matrices]).")
      .def("counts", counts, "Tensor name -> counts int64 [n_matrices].")
      .def("close", &PyImportance::close);
}

}  // namespace kimi
