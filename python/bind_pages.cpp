// PagePool, Page and what sessions do with pages.
#include <pybind11/stl.h>

#include "bindings.h"
#include "py_session.h"

namespace py = pybind11;

namespace kimi {
namespace {

const char* name_of(KvType type) {
  switch (type) {
    case KvType::f16:
      return "f16";
    case KvType::f32:
      return "f32";
    case KvType::q8_0:
      return "q8_0";
  }
  return "";
}

py::bytes read_page(const PyPage& self) {
  const Page& page = *self.page;
  const auto n = static_cast<Py_ssize_t>(page.pool()->layout().bytes_of(page.n_filled()));
  auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, n));
  if (!bytes) throw py::error_already_set();
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(bytes.ptr()));
  const py::gil_scoped_release release;
  page.read(out);
  return bytes;
}

PyPage page_from(const PyPagePool& self, const py::buffer& rows, int64_t n_filled) {
  Py_buffer view;
  if (PyObject_GetBuffer(rows.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> held(&view, PyBuffer_Release);
  const py::gil_scoped_release release;
  return {self.pool->page_from(static_cast<const uint8_t*>(view.buf), view.len, n_filled)};
}

std::vector<PyPage> pages_of(const PySession& self) {
  const Session& session = self.get();
  std::vector<PageRef> found;
  {
    const py::gil_scoped_release release;
    found = session.pages();
  }
  std::vector<PyPage> pages;
  for (PageRef& page : found) pages.push_back({std::move(page)});
  return pages;
}

void adopt(PySession& self, const std::vector<PyPage>& pages, int64_t n_past) {
  Session& session = self.get();
  std::vector<PageRef> given;
  for (const PyPage& page : pages) given.push_back(page.page);
  const py::gil_scoped_release release;
  session.adopt(given, n_past);
}

std::unique_ptr<PySession> fork(const PySession& self) {
  const Session& session = self.get();
  auto copy = std::make_unique<PySession>();
  copy->owner = self.owner;
  const py::gil_scoped_release release;
  copy->session = session.fork();
  return copy;
}

}  // namespace

std::optional<KvType> parse_kv_type(const std::string& text) {
  if (text == "auto") return std::nullopt;
  for (const KvType type : {KvType::f16, KvType::q8_0, KvType::f32})
    if (text == name_of(type)) return type;
  fail(ErrorKind::bad_request, "request.kv_type", "kv_type is \"%s\", expected auto, f16, q8_0 or f32", text.c_str());
}

void bind_pages(py::module_& m) {
  py::class_<PyPage>(m, "Page", "A counted reference to a page of a pool.")
      .def_property_readonly("n_filled", [](const PyPage& self) { return self.page->n_filled(); })
      .def_property_readonly("sealed", [](const PyPage& self) { return self.page->n_filled() == kPagePositions; })
      .def_property_readonly("nbytes", [](const PyPage& self) { return self.page->pool()->layout().bytes(); })
      .def("read", read_page);
  py::class_<PyPagePool>(m, "PagePool", "The memory of the caches of any number of sessions, within a budget.")
      .def(py::init([](std::shared_ptr<PyEngine> engine, int64_t budget, const std::string& kv_type) {
             std::shared_ptr<PagePool> pool = engine->get().pool_with_budget(parse_kv_type(kv_type), budget);
             return std::make_unique<PyPagePool>(PyPagePool{std::move(engine), std::move(pool)});
           }),
           py::arg("engine"), py::arg("budget"), py::arg("kv_type") = "auto")
      .def_property_readonly("budget", [](const PyPagePool& self) { return self.pool->budget(); })
      .def_property_readonly("bytes_in_use", [](const PyPagePool& self) { return self.pool->bytes_in_use(); })
      .def_property_readonly("page_bytes", [](const PyPagePool& self) { return self.pool->layout().bytes(); })
      .def_property_readonly("n_pages", [](const PyPagePool& self) { return self.pool->n_pages(); })
      .def_property_readonly("kv_type", [](const PyPagePool& self) { return name_of(self.pool->layout().type); })
      .def("page_from", page_from, py::arg("rows"), py::arg("n_filled"));
  m.attr("PAGE_POSITIONS") = kPagePositions;
  m.def(
      "kv_row_bytes",
      [](const std::string& kv_type, int64_t kv_lora_rank, int64_t qk_rope_head_dim) {
        return KvRow(parse_kv_type(kv_type).value_or(KvType::f16), kv_lora_rank, qk_rope_head_dim).bytes;
      },
      py::arg("kv_type"), py::arg("kv_lora_rank"), py::arg("qk_rope_head_dim"));

  // Methods of Engine and Session, which are known already.
  const py::object engine = m.attr("Engine");
  engine.attr("kv_bytes_per_token") = py::cpp_function(
      [](const PyEngine& self, const std::string& kv_type) { return self.get().page_layout(parse_kv_type(kv_type)).bytes_of(1); },
      py::name("kv_bytes_per_token"), py::is_method(engine), py::arg("kv_type") = "auto");
  const py::object session = m.attr("Session");
  session.attr("pages") = py::module_::import("builtins").attr("property")(py::cpp_function(pages_of, py::is_method(session)));
  session.attr("adopt") = py::cpp_function(adopt, py::name("adopt"), py::is_method(session), py::arg("pages"), py::arg("n_past"));
  session.attr("fork") = py::cpp_function(fork, py::name("fork"), py::is_method(session));
}

}  // namespace kimi
