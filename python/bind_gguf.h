// A Python GGUFFile over a file that somebody else keeps open.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>

#include "gguf/gguf.h"

namespace kimi {

// `owner` keeps `file` alive for as long as the Python object lives.
pybind11::object wrap_gguf(std::shared_ptr<const void> owner, const gguf::File* file);

}  // namespace kimi
