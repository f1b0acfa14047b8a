// The extension module: registers the bindings and translates kimi::Error into kimi_vl_cpp.errors.
#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings.h"

namespace py = pybind11;

namespace {

const char* class_name(kimi::ErrorKind kind) {
  switch (kind) {
    case kimi::ErrorKind::bad_model_file:
      return "BadModelFile";
    case kimi::ErrorKind::bad_image:
      return "BadImage";
    case kimi::ErrorKind::bad_request:
      return "BadRequest";
    case kimi::ErrorKind::context_full:
      return "ContextFull";
    case kimi::ErrorKind::out_of_memory:
      return "OutOfMemory";
    case kimi::ErrorKind::cancelled:
      return "Cancelled";
    case kimi::ErrorKind::unsupported:
      return "Unsupported";
    case kimi::ErrorKind::internal:
      return "KimiVLError";
  }
  return "KimiVLError";
}

py::object make_error(kimi::ErrorKind kind, const std::string& code, const char* message) {
  // Messages may quote bytes of a hostile file: decode them so that this never fails.
  const py::object text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(strlen(message)), "backslashreplace"));
  return py::module_::import("kimi_vl_cpp.errors").attr(class_name(kind))(text, py::arg("code") = code);
}

}  // namespace

py::object kimi::python_error(const std::exception_ptr& pointer) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    return make_error(error.kind(), error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return make_error(ErrorKind::out_of_memory, "memory.allocation",
                      "out of memory: use a smaller context, a smaller picture or a smaller quantization");
  }
}

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of kimi_vl_cpp.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    const py::object instance = kimi::python_error(pointer);
    PyErr_SetObject(py::type::handle_of(instance).ptr(), instance.ptr());
  });
  kimi::bind_gguf(m);
  kimi::bind_ops(m);
  kimi::bind_quant(m);
  kimi::bind_bench(m);
  kimi::bind_engine(m);
  kimi::bind_session(m);
  kimi::bind_task(m);
  kimi::bind_pages(m);
  kimi::bind_machine(m);
  kimi::bind_imatrix(m);
}
