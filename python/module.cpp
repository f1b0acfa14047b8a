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

void raise(kimi::ErrorKind kind, const std::string& code, const char* message) {
  // Messages may quote bytes of a hostile file: decode them so that this never fails.
  py::object text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(strlen(message)), "backslashreplace"));
  py::object type = py::module_::import("kimi_vl_cpp.errors").attr(class_name(kind));
  py::object instance = type(text, py::arg("code") = code);
  PyErr_SetObject(type.ptr(), instance.ptr());
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of kimi_vl_cpp.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const kimi::Error& error) {
      raise(error.kind(), error.code(), error.what());
    } catch (const std::bad_alloc&) {
      raise(kimi::ErrorKind::out_of_memory, "memory.allocation",
            "out of memory: use a smaller context, a smaller picture or a smaller quantization");
    }
  });
  kimi::bind_gguf(m);
  kimi::bind_ops(m);
  kimi::bind_quant(m);
  kimi::bind_bench(m);
  kimi::bind_engine(m);
  kimi::bind_session(m);
  kimi::bind_machine(m);
  kimi::bind_imatrix(m);
}
