#include "call_args.h"

#include "base/error.h"

namespace py = pybind11;

namespace kimi {

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

py::object room_for_logits(Slice* slice, int64_t vocab) {
  slice->session->check_room(slice->n());  // before memory is taken for their logits
  if (slice->want == Logits::none) return py::none();
  py::array_t<float> out = slice->want == Logits::all ? py::array_t<float>({slice->n(), vocab}) : py::array_t<float>({vocab});
  slice->logits = out.mutable_data();
  return out;
}

Picture picture_of(const Engine& engine, const py::array& array) {
  KIMI_CHECK(py::isinstance<py::array_t<uint8_t>>(array) && array.ndim() == 3 && array.shape(2) == 3, ErrorKind::bad_request,
             "request.pixels", "pixels must be a uint8 array of shape [H, W, 3]");
  KIMI_CHECK((array.flags() & py::array::c_style) != 0, ErrorKind::bad_request, "request.pixels",
             "pixels must be contiguous: pass numpy.ascontiguousarray(pixels)");
  return {engine.require_vision(), static_cast<const uint8_t*>(array.data()), array.shape(0), array.shape(1)};
}

}  // namespace kimi
