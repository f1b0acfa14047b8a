// Sizes of every tensor type that GGUF defines, also of those that we do not decode: their place in the file is checked too.
#pragma once
#include <cstdint>

namespace kimi::gguf {

struct BlockSize {
  uint32_t elems;
  uint32_t bytes;
};

enum class TypeStatus { readable, unreadable, removed, undefined };
TypeStatus type_status(uint32_t type_id);
BlockSize block_size(uint32_t type_id);  // of readable and unreadable types

}  // namespace kimi::gguf
