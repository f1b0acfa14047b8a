// What module.cpp registers; one function per bind_*.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include <exception>

namespace kimi {

void bind_gguf(pybind11::module_& m);     // GGUFFile, formats, decode
void bind_ops(pybind11::module_& m);      // submodule ops: kernels callable from tests
void bind_quant(pybind11::module_& m);    // quantize_rows
void bind_bench(pybind11::module_& m);    // submodule bench: the peaks of this machine
void bind_engine(pybind11::module_& m);   // Engine, check_text_model, check_vision_file
void bind_session(pybind11::module_& m);  // Sampler, Session, Engine.step, Engine.decode
void bind_task(pybind11::module_& m);     // PrefillTask, ImageTask, Engine.begin_prefill, Engine.begin_image
void bind_pages(pybind11::module_& m);    // PagePool, Page, Session.pages, .adopt, .fork
void bind_machine(pybind11::module_& m);  // isas, cpu_info, cpu_count
void bind_imatrix(pybind11::module_& m);  // Importance

// A core's exception as the one of kimi_vl_cpp.errors that stands for it; others are thrown again.
pybind11::object python_error(const std::exception_ptr& pointer);

}  // namespace kimi
