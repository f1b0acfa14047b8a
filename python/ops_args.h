// Arguments of the kernels that bind_ops*.cpp makes callable: arrays are checked, never converted, so that a test knows
// which bytes a kernel saw.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "backend/cpu/kernels/kernel_table.h"
#include "base/error.h"

namespace kimi::ops {

namespace py = pybind11;
constexpr int64_t kAny = -1;

inline void check(bool condition, const std::string& message) {
  if (!condition) fail(ErrorKind::bad_request, "ops.argument", "%s", message.c_str());
}

// A C-contiguous array of exactly this element type; kAny accepts any extent of that dimension.
template <typename T>
py::array_t<T> take(const py::object& object, const char* name, std::initializer_list<int64_t> shape) {
  check(py::isinstance<py::array_t<T>>(object),
        std::string(name) + ": expected a numpy array of " + py::str(py::dtype::of<T>()).cast<std::string>());
  auto array = py::reinterpret_borrow<py::array_t<T>>(object);
  check(array.flags() & py::array::c_style, std::string(name) + ": expected a C-contiguous array");
  check(array.ndim() == static_cast<py::ssize_t>(shape.size()),
        std::string(name) + ": expected " + std::to_string(shape.size()) + " dimensions, got " + std::to_string(array.ndim()));
  int axis = 0;
  for (int64_t extent : shape) {
    check(extent == kAny || array.shape(axis) == extent, std::string(name) + ": dimension " + std::to_string(axis) + " is " +
                                                             std::to_string(array.shape(axis)) + ", expected " +
                                                             std::to_string(extent));
    ++axis;
  }
  return array;
}

template <typename T>
py::array_t<T> make(std::initializer_list<int64_t> shape) {
  return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

inline const quant::Format& format_named(const std::string& name) {
  const quant::Format* format = quant::find_format(std::string_view(name));
  KIMI_CHECK(format, ErrorKind::bad_request, "ops.type", "type \"%s\" is not one of formats()", name.c_str());
  return *format;
}

inline int index_of(const quant::Format& format) { return static_cast<int>(format.type); }

}  // namespace kimi::ops
