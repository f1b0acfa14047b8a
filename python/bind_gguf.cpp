// GGUFFile, TensorInfo, formats(), decode(): the container and the block formats as Python sees them.
// A GGUFFile is a std::shared_ptr<gguf::File>, so that an engine can hand out the one it owns.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "bindings.h"
#include "gguf/gguf.h"
#include "gguf/types.h"
#include "quant/encode.h"
#include "quant/format.h"

namespace py = pybind11;

namespace kimi {
namespace {

using gguf::File;
using gguf::TensorInfo;
using gguf::Value;
using gguf::ValueType;

// str, bytes or os.PathLike -> the bytes that the system calls take.
std::string path_of(const py::object& path) {
  PyObject* encoded = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &encoded)) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) throw py::error_already_set();
    PyErr_Clear();
    fail(ErrorKind::bad_request, "request.path", "the path contains a NUL byte or cannot be encoded: name a file");
  }
  return py::reinterpret_steal<py::bytes>(encoded);
}

py::str text_of(std::string_view bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape");
  if (!text) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

template <typename T>
T load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

py::object scalar(ValueType type, const uint8_t* bytes) {
  switch (type) {
    case ValueType::u8:
      return py::int_(load<uint8_t>(bytes));
    case ValueType::i8:
      return py::int_(load<int8_t>(bytes));
    case ValueType::u16:
      return py::int_(load<uint16_t>(bytes));
    case ValueType::i16:
      return py::int_(load<int16_t>(bytes));
    case ValueType::u32:
      return py::int_(load<uint32_t>(bytes));
    case ValueType::i32:
      return py::int_(load<int32_t>(bytes));
    case ValueType::u64:
      return py::int_(load<uint64_t>(bytes));
    case ValueType::i64:
      return py::int_(load<int64_t>(bytes));
    case ValueType::f32:
      return py::float_(static_cast<double>(load<float>(bytes)));
    case ValueType::f64:
      return py::float_(load<double>(bytes));
    case ValueType::boolean:
      return py::bool_(*bytes != 0);
    default:
      break;
  }
  fail(ErrorKind::internal, "internal.value_type", "not a scalar: %s", gguf::value_type_name(type));
}

const Value& key_of(const File& file, const std::string& key) {
  const Value* value = file.find_key(key);
  KIMI_CHECK(value, ErrorKind::bad_request, "request.key", "%s has no key '%s': see keys()", file.path().c_str(), key.c_str());
  return *value;
}

const TensorInfo& tensor_of(const File& file, const std::string& name) {
  const TensorInfo* tensor = file.find_tensor(name);
  KIMI_CHECK(tensor, ErrorKind::bad_request, "request.tensor", "%s has no tensor '%s': see tensors", file.path().c_str(),
             name.c_str());
  KIMI_CHECK(tensor->format, ErrorKind::unsupported, "unsupported.tensor_type",
             "%s: tensor %s: type %s cannot be read: use a file of the types %s", file.path().c_str(), name.c_str(),
             gguf::type_name(tensor->type_id), quant::format_names().c_str());
  return *tensor;
}

// Strings as list elements, made by `make(std::string_view)`.
template <typename Make>
py::list string_list(const std::vector<std::string_view>& strings, const Make& make) {
  py::list list(strings.size());
  for (size_t i = 0; i < strings.size(); ++i) list[i] = make(strings[i]);
  return list;
}

py::object get(const File& file, const std::string& key) {
  const Value* value = file.find_key(key);
  if (!value) return py::none();
  if (value->type == ValueType::string) return text_of({reinterpret_cast<const char*>(value->data), value->size});
  if (value->type != ValueType::array) return scalar(value->type, value->data);
  if (value->element_type == ValueType::string) return string_list(*file.get_strings(key), text_of);
  py::list list(value->count);
  const uint64_t step = value->count ? value->size / value->count : 0;
  for (uint64_t i = 0; i < value->count; ++i) list[i] = scalar(value->element_type, value->data + i * step);
  return list;
}

py::object get_bytes_list(const File& file, const std::string& key) {
  const auto strings = file.get_strings(key);
  if (!strings) return py::none();
  return string_list(*strings, [](std::string_view text) { return py::bytes(text.data(), text.size()); });
}

std::string value_type(const File& file, const std::string& key) {
  const Value& value = key_of(file, key);
  if (value.type != ValueType::array) return gguf::value_type_name(value.type);
  return std::string("array[") + gguf::value_type_name(value.element_type) + "]";
}

// An uninitialised array that owns malloc'ed memory: a failed allocation is our OutOfMemory, not numpy's.
template <typename T>
py::array_t<T> new_array(const std::vector<py::ssize_t>& shape, uint64_t n_elems) {
  uint64_t n_bytes;
  const bool fits = checked_mul(n_elems, sizeof(T), &n_bytes) && n_bytes <= PTRDIFF_MAX;
  void* memory = fits ? std::malloc(n_bytes ? n_bytes : 1) : nullptr;
  KIMI_CHECK(memory, ErrorKind::out_of_memory, "memory.allocation",
             "could not allocate %llu elements of %zu bytes: read smaller tensors", static_cast<unsigned long long>(n_elems),
             sizeof(T));
  py::capsule owner(memory, [](void* p) { std::free(p); });
  return py::array_t<T>(shape, static_cast<T*>(memory), owner);
}

std::vector<py::ssize_t> numpy_shape(const TensorInfo& tensor) {
  std::vector<py::ssize_t> shape(static_cast<size_t>(tensor.n_dims));
  for (int d = 0; d < tensor.n_dims; ++d) shape[static_cast<size_t>(tensor.n_dims - 1 - d)] = tensor.ne[d];
  return shape;
}

// Decodes with the GIL released, in pieces of about 10 ms so that Ctrl-C is felt.
void decode_interruptibly(const quant::Format& format, const uint8_t* raw, float* out, int64_t n) {
  constexpr int64_t kPiece = 1 << 22;  // elements; a multiple of every block
  for (int64_t i = 0; i < n; i += kPiece) {
    {
      py::gil_scoped_release release;
      format.decode(raw + format.row_bytes(i), out + i, std::min(kPiece, n - i));
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

py::array tensor_f32(const File& file, const std::string& name) {
  const TensorInfo& tensor = tensor_of(file, name);
  auto out = new_array<float>(numpy_shape(tensor), tensor.n_elems());
  decode_interruptibly(*tensor.format, tensor.data, out.mutable_data(), static_cast<int64_t>(tensor.n_elems()));
  return out;
}

py::array tensor_raw(const File& file, const std::string& name) {
  const TensorInfo& tensor = tensor_of(file, name);
  auto out = new_array<uint8_t>({static_cast<py::ssize_t>(tensor.n_bytes)}, tensor.n_bytes);
  uint8_t* bytes = out.mutable_data();
  {
    py::gil_scoped_release release;
    std::memcpy(bytes, tensor.data, tensor.n_bytes);
  }
  return out;
}

py::list list_formats() {
  py::list list;
  for (const quant::Format& format : quant::formats()) {
    py::dict row;
    row["name"] = format.name;
    row["id"] = static_cast<uint32_t>(format.type);
    row["block_elems"] = format.block_elems;
    row["block_bytes"] = format.block_bytes;
    row["bits_per_weight"] = 8.0 * format.block_bytes / format.block_elems;
    row["writable"] = quant::has_encoder(format.type);
    list.append(row);
  }
  return list;
}

py::array decode(const std::string& type_name, const py::array_t<uint8_t, py::array::c_style>& raw, int64_t n) {
  const quant::Format* format = quant::find_format(std::string_view(type_name));
  KIMI_CHECK(format, ErrorKind::bad_request, "request.type_name", "no format is called '%s': see formats()", type_name.c_str());
  KIMI_CHECK(n >= 0 && n % format->block_elems == 0, ErrorKind::bad_request, "request.n",
             "n is %lld, expected a multiple of the %d elements of a block of %s", static_cast<long long>(n), format->block_elems,
             format->name);
  KIMI_CHECK(n / format->block_elems == raw.size() / format->block_bytes && raw.size() % format->block_bytes == 0,
             ErrorKind::bad_request, "request.raw", "raw has %lld bytes, expected %d for each %d of the %lld elements",
             static_cast<long long>(raw.size()), format->block_bytes, format->block_elems, static_cast<long long>(n));
  auto out = new_array<float>({static_cast<py::ssize_t>(n)}, static_cast<uint64_t>(n));
  decode_interruptibly(*format, raw.data(), out.mutable_data(), n);
  return out;
}

void bind_tensor_info(py::module_& m) {
  py::class_<TensorInfo>(m, "TensorInfo", "One row of a file's tensor directory.")
      .def_property_readonly("name", [](const TensorInfo& t) { return text_of(t.name); })
      .def_property_readonly(
          "shape", [](const TensorInfo& t) { return py::tuple(py::cast(numpy_shape(t))); },
          "NumPy order: slowest dimension first.")
      .def_property_readonly(
          "ne", [](const TensorInfo& t) { return py::tuple(py::cast(std::vector<int64_t>(t.ne, t.ne + t.n_dims))); },
          "GGUF order: contiguous dimension first.")
      .def_property_readonly("type", [](const TensorInfo& t) { return gguf::type_name(t.type_id); })
      .def_property_readonly("supported", [](const TensorInfo& t) { return t.format != nullptr; })
      .def_readonly("n_bytes", &TensorInfo::n_bytes)
      .def_property_readonly("n_elems", &TensorInfo::n_elems)
      .def_readonly("offset", &TensorInfo::file_offset, "Bytes from the start of its shard.")
      .def_readonly("shard", &TensorInfo::shard)
      .def("__repr__", [](const TensorInfo& t) {
        return py::str("<TensorInfo {} {} {}>")
            .format(text_of(t.name), gguf::type_name(t.type_id), py::tuple(py::cast(numpy_shape(t))));
      });
}

}  // namespace

void bind_gguf(py::module_& m) {
  bind_tensor_info(m);
  py::class_<File, std::shared_ptr<File>>(m, "GGUFFile",
                                          "Metadata and tensors of a GGUF file, all shards of a split one. Raises BadModelFile.")
      .def(py::init([](const py::object& path) {
             const std::string encoded = path_of(path);
             py::gil_scoped_release release;
             return std::make_shared<File>(File::open(encoded));
           }),
           py::arg("path"))
      .def_property_readonly("path",
                             [](const File& f) {
                               return py::reinterpret_steal<py::str>(
                                   PyUnicode_DecodeFSDefaultAndSize(f.path().data(), static_cast<Py_ssize_t>(f.path().size())));
                             })
      .def_property_readonly("version", &File::version)
      .def_property_readonly("n_shards", &File::n_shards)
      .def_property_readonly("file_bytes", &File::file_bytes)
      .def_property_readonly("warnings",
                             [](const File& f) {
                               py::list list;
                               for (const std::string& warning : f.warnings()) list.append(text_of(warning));
                               return list;
                             })
      .def_property_readonly("tensors", &File::tensors, py::return_value_policy::copy)
      .def("keys",
           [](const File& f) {
             py::list list;
             for (const auto& [key, value] : f.metadata()) list.append(text_of(key));
             return list;
           })
      .def("get", &get, py::arg("key"), "int, float, bool, str, list of these, or None when the key is absent.")
      .def("get_bytes_list", &get_bytes_list, py::arg("key"))
      .def("get_int", &File::get_int, py::arg("key"), "Any integer type. Another type: BadModelFile \"gguf.key_type\".")
      .def("get_float", &File::get_float, py::arg("key"), "f32 or f64.")
      .def("get_bool", &File::get_bool, py::arg("key"))
      .def("get_ints", &File::get_ints, py::arg("key"), "An array of any integer type.")
      .def("get_floats", &File::get_floats, py::arg("key"), "An array of f32 or f64.")
      .def("value_type", &value_type, py::arg("key"), "\"u32\", \"string\", \"array[i32]\", ...")
      .def("tensor_f32", &tensor_f32, py::arg("name"), "Decoded, in NumPy order.")
      .def("tensor_raw", &tensor_raw, py::arg("name"), "A copy of its bytes.")
      .def("__repr__",
           [](const File& f) { return py::str("<GGUFFile {}, {} tensors>").format(text_of(f.path()), f.tensors().size()); });
  m.def("formats", &list_formats, "The tensor types that are read.");
  m.def("decode", &decode, py::arg("type_name"), py::arg("raw"), py::arg("n"),
        "`n` elements of a format's blocks (uint8) as float32. Raises BadRequest.");
}

}  // namespace kimi
