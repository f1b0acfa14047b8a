// Arguments of calls and tasks, as Python gives them.
#pragma once
#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "engine/session.h"

namespace kimi {

Logits parse_logits(const std::string& text);
// int32 ids [n] or float32 embeddings [n, hidden]. Points into the array.
Part part_of(const pybind11::array& array, int64_t hidden);
// Whether each row is expanded, [n] of bool; None: as the pages say.
std::vector<RowForm> forms_of(const pybind11::object& expanded);
// Where the slice's logits go: float32 [n, vocab], [vocab] or None.
pybind11::object room_for_logits(Slice* slice, int64_t vocab);
// uint8 [H, W, 3]. Points into the array. Throws what Engine::require_vision and Picture do.
Picture picture_of(const Engine& engine, const pybind11::array& array);

}  // namespace kimi
