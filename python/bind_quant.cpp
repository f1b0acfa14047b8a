// quantize_rows(): the encoders of csrc/quant over the rows of a tensor, on several threads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_count.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "bindings.h"
#include "quant/encode.h"

namespace py = pybind11;

namespace kimi {
namespace {

using quant::Encoders;
using quant::Format;
using quant::Type;

// Ctrl-C between chunks; only the main thread runs signal handlers.
class Signals final : public Interrupt {
 public:
  bool stop_requested() override {
    py::gil_scoped_acquire acquire;
    raised_ = raised_ || PyErr_CheckSignals() != 0;
    if (raised_ && !error_) error_ = std::make_exception_ptr(py::error_already_set());
    return raised_;
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  bool raised_ = false;
  std::exception_ptr error_;
};

const Format& encoded_format(const std::string& name) {
  const Format* format = quant::find_format(std::string_view(name));
  KIMI_CHECK(format, ErrorKind::bad_request, "quant.type", "no format is called \"%s\": see formats()", name.c_str());
  return *format;
}

// The rows of the caller as floats, whatever they are stored as.
struct Source {
  const uint8_t* bytes;
  int64_t n_rows, n_cols, row_bytes;
  Type type;

  explicit Source(const py::array& array) {
    KIMI_CHECK(array.ndim() == 2, ErrorKind::bad_request, "quant.data", "data has %d dimensions, expected 2: [n_rows, n_cols]",
               static_cast<int>(array.ndim()));
    KIMI_CHECK(array.flags() & py::array::c_style, ErrorKind::bad_request, "quant.data",
               "data is not C-contiguous: use numpy.ascontiguousarray");
    const py::dtype dtype = array.dtype();
    const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
    if (native && dtype.kind() == 'f' && dtype.itemsize() == 4) {
      type = Type::F32;
    } else if (native && dtype.kind() == 'f' && dtype.itemsize() == 2) {
      type = Type::F16;
    } else if (native && dtype.kind() == 'u' && dtype.itemsize() == 2) {
      type = Type::BF16;
    } else {
      fail(ErrorKind::bad_request, "quant.data", "data is an array of %s, expected float32, float16, or uint16 for bfloat16",
           py::str(dtype).cast<std::string>().c_str());
    }
    bytes = static_cast<const uint8_t*>(array.data());
    n_rows = array.shape(0);
    n_cols = array.shape(1);
    row_bytes = n_cols * dtype.itemsize();
  }

  // The floats of a row: the caller's own, or `scratch` filled.
  const float* row(const Encoders& encoders, int64_t index, float* scratch) const {
    const uint8_t* at = bytes + index * row_bytes;
    if (type == Type::F16) {
      encoders.widen_f16(at, scratch, n_cols);
    } else if (type == Type::BF16) {
      encoders.widen_bf16(at, scratch, n_cols);
    } else if (reinterpret_cast<uintptr_t>(at) % alignof(float) != 0) {
      std::copy_n(at, row_bytes, reinterpret_cast<uint8_t*>(scratch));
    } else {
      return reinterpret_cast<const float*>(at);
    }
    return scratch;
  }
};

const float* checked_importance(const py::object& object, int64_t n_cols) {
  if (object.is_none()) return nullptr;
  KIMI_CHECK(py::isinstance<py::array_t<float>>(object), ErrorKind::bad_request, "quant.importance",
             "importance: expected a float32 array or None");
  const auto array = py::reinterpret_borrow<py::array_t<float>>(object);
  KIMI_CHECK(array.ndim() == 1 && array.shape(0) == n_cols && (array.flags() & py::array::c_style), ErrorKind::bad_request,
             "quant.importance", "importance: expected a contiguous array of the %lld columns of data",
             static_cast<long long>(n_cols));
  for (int64_t i = 0; i < n_cols; ++i) {
    const float value = array.data()[i];
    KIMI_CHECK(std::isfinite(value) && value >= 0, ErrorKind::bad_request, "quant.importance",
               "importance of column %lld is %g, expected a finite number that is not negative", static_cast<long long>(i),
               static_cast<double>(value));
  }
  return array.data();
}

// Past the largest finite f16, a float rounds to infinity.
constexpr float kF16Overflow = 65520.0f;

[[noreturn]] void refuse_row(const Source& source, const Encoders& encoders, int64_t index) {
  std::vector<float> scratch(static_cast<size_t>(source.n_cols));
  const float* row = source.row(encoders, index, scratch.data());
  int64_t col = 0;
  while (col + 1 < source.n_cols && std::isfinite(row[col]) && std::fabs(row[col]) < kF16Overflow) ++col;
  for (int64_t i = 0; i < source.n_cols; ++i) {
    if (!std::isfinite(row[i])) {
      fail(ErrorKind::bad_request, "quant.not_finite",
           "row %lld, column %lld is %g: weights must be finite numbers; the source is damaged", static_cast<long long>(index),
           static_cast<long long>(i), static_cast<double>(row[i]));
    }
  }
  fail(ErrorKind::bad_request, "quant.overflow",
       "row %lld, column %lld is %g, too large for F16 (at most 65504): use BF16 or F32", static_cast<long long>(index),
       static_cast<long long>(col), static_cast<double>(row[col]));
}

py::array_t<uint8_t> quantize_rows(const std::string& type_name, const py::array& data, const py::object& importance_object,
                                   int n_threads, const std::string& isa) {
  const Format& format = encoded_format(type_name);
  const Encoders& encoders = quant::select_encoders(isa.c_str());
  const quant::RowEncoder encode = quant::encoder_of(encoders, format.type);
  const Source source(data);
  KIMI_CHECK(source.n_cols % format.block_elems == 0, ErrorKind::bad_request, "quant.columns",
             "rows of %lld elements, expected a multiple of the block of %d of %s: choose another type for this tensor",
             static_cast<long long>(source.n_cols), format.block_elems, format.name);
  const float* importance = checked_importance(importance_object, source.n_cols);
  KIMI_CHECK(n_threads >= 0 && n_threads <= 1024, ErrorKind::bad_request, "quant.n_threads",
             "n_threads is %d, expected 0 (automatic) to 1024", n_threads);
  const int64_t row_bytes = format.row_bytes(source.n_cols);
  py::array_t<uint8_t> out({static_cast<py::ssize_t>(source.n_rows), static_cast<py::ssize_t>(row_bytes)});
  if (out.size() == 0) return out;
  uint8_t* out_bytes = out.mutable_data();

  std::atomic<int64_t> first_refused{source.n_rows};
  Signals signals;
  try {
    py::gil_scoped_release release;
    const int64_t rows_per_chunk = std::max<int64_t>(1, 32768 / source.n_cols);
    const int64_t n_chunks = (source.n_rows + rows_per_chunk - 1) / rows_per_chunk;
    const int wanted = n_threads > 0 ? n_threads : count_cpus().threads;
    ThreadPool pool(static_cast<int>(std::min<int64_t>(wanted, n_chunks)));
    pool.set_interrupt(&signals);
    std::vector<AlignedBuffer<float>> scratch;
    for (int i = 0; i < pool.n_threads(); ++i) scratch.emplace_back(source.n_cols);
    pool.parallel_for(n_chunks, [&](int64_t chunk, int thread) {
      const int64_t begin = chunk * rows_per_chunk, end = std::min(source.n_rows, begin + rows_per_chunk);
      if (begin > first_refused.load(std::memory_order_relaxed)) return;
      for (int64_t r = begin; r < end; ++r) {
        const float* row = source.row(encoders, r, scratch[static_cast<size_t>(thread)].data());
        const bool too_large = format.type == Type::F16 &&
                               std::any_of(row, row + source.n_cols, [](float x) { return std::fabs(x) >= kF16Overflow; });
        if (too_large || !encoders.all_finite(row, source.n_cols)) {
          int64_t known = first_refused.load();
          while (r < known && !first_refused.compare_exchange_weak(known, r)) {
          }
          return;
        }
        encode(row, importance, out_bytes + r * row_bytes, source.n_cols);
      }
    });
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::cancelled) signals.rethrow();
    throw;
  }
  if (first_refused.load() < source.n_rows) refuse_row(source, encoders, first_refused.load());
  return out;
}

}  // namespace

void bind_quant(py::module_& m) {
  m.def("quantize_rows", &quantize_rows, py::arg("type_name"), py::arg("data"), py::arg("importance") = py::none(),
        py::arg("n_threads") = 0, py::arg("isa") = "auto",
        "Rows of weights into the blocks of a format, a writable one of formats().\n\n"
        "data: float32, float16, or uint16 holding bfloat16, [n_rows, n_cols], C-contiguous; n_cols a multiple of block_elems.\n"
        "importance: float32 [n_cols], what a squared error in each column weighs, or None. n_threads 0: automatic.\n"
        "isa: auto, or one of isas(). Returns uint8 [n_rows, row_bytes], the same for any n_threads and isa.\n"
        "Raises Unsupported: quant.no_encoder. BadRequest: quant.not_finite (names row and column), quant.overflow (F16), "
        "quant.columns, quant.type, quant.data,\n"
        "quant.importance. A scale beyond the range of f16 is held at 65504.");
}

}  // namespace kimi
