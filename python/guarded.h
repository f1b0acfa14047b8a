// Guarded: a long call without the GIL, which asks Python for signals between chunks of work.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <exception>
#include <utility>

#include "base/error.h"
#include "engine/engine.h"

namespace kimi {

namespace py = pybind11;

// Runs a call without the GIL; stops it when a signal handler raises (main thread) or the progress callback does.
class Guarded final : public Interrupt {
 public:
  explicit Guarded(py::object progress) : progress_(std::move(progress)) {
    const py::module_ threading = py::module_::import("threading");
    main_thread_ = threading.attr("current_thread")().is(threading.attr("main_thread")());
  }

  template <typename Body>
  void run(const Body& body) {
    try {
      py::gil_scoped_release release;
      body();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::cancelled && raised_) std::rethrow_exception(raised_);
      throw;
    }
    if (raised_) std::rethrow_exception(raised_);
  }

  bool stop_requested() override {
    if (raised_) return true;
    if (!main_thread_) return false;
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) keep_error();
    return raised_ != nullptr;
  }

  Progress callback() {
    if (progress_.is_none()) return {};
    return [this](int64_t done, int64_t total) {
      const auto now = std::chrono::steady_clock::now();
      if (raised_ || (done != 0 && done != total && now - last_ < std::chrono::milliseconds(50))) return;
      last_ = now;
      py::gil_scoped_acquire acquire;
      try {
        progress_(done, total);
      } catch (py::error_already_set&) {
        raised_ = std::current_exception();
      }
    };
  }

 private:
  void keep_error() {
    try {
      throw py::error_already_set();
    } catch (...) {
      raised_ = std::current_exception();
    }
  }
  py::object progress_;
  bool main_thread_;
  std::exception_ptr raised_;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace kimi
