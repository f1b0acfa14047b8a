// Every tensor type that has a number in GGUF files: its name, its size also where it is not decoded (so that its place in the
// file is checked too), and where it comes from.
#pragma once
#include <cstdint>

namespace kimi::gguf {

struct BlockSize {
  uint32_t elems;
  uint32_t bytes;
};

enum class TypeStatus {
  readable,
  unreadable,  // GGUF defines it, and no model here uses it
  removed,     // GGUF defined it once
  foreign,     // of ik_llama.cpp, which writes GGUF files of its own types
  undefined,
};
TypeStatus type_status(uint32_t type_id);
const char* type_name(uint32_t type_id);  // "IQ2_XXS"; "unknown" of undefined ones
BlockSize block_size(uint32_t type_id);   // of readable and unreadable types

}  // namespace kimi::gguf
