// The tensor directory: each entry checked for itself, then all of them together against the bytes of the file.
#include <algorithm>
#include <numeric>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/shard.h"
#include "gguf/text.h"
#include "gguf/types.h"

namespace kimi::gguf {
namespace {

using ull = unsigned long long;

bool align_up(uint64_t value, uint64_t alignment, uint64_t* out) {  // alignment: a power of two
  if (!checked_add(value, alignment - 1, out)) return false;
  *out &= ~(alignment - 1);
  return true;
}

std::string shape_text(const TensorInfo& tensor) {
  std::string text = "[";
  for (int d = 0; d < tensor.n_dims; ++d) {
    if (d) text += ',';
    text += std::to_string(tensor.ne[d]);
  }
  return text += ']';
}

void read_name(Cursor& cursor, TensorInfo& tensor) {
  const uint64_t offset = cursor.position(), length = cursor.read<uint64_t>("length of the tensor's name");
  if (length == 0 || length > limits::kTensorNameBytes) {
    cursor.fail_at("gguf.tensor_name", offset,
                   format_string("the name is %llu bytes long, allowed are 1 to %llu; %s", static_cast<ull>(length),
                                 static_cast<ull>(limits::kTensorNameBytes), kDamaged));
  }
  const std::string_view name(reinterpret_cast<const char*>(cursor.take(length, "tensor's name")), length);
  if (name.find('\0') != name.npos || !valid_utf8(name)) {
    cursor.fail_at("gguf.tensor_name", offset + 8,
                   "the name is " + quoted(name) + ", expected UTF-8 text without NUL; " + std::string(kDamaged));
  }
  if (length > cursor.budget().name_bytes) {
    cursor.fail_at(
        "gguf.header_size", offset,
        format_string("keys and tensor names take more than %llu MiB; %s", static_cast<ull>(limits::kNameBytes >> 20), kDamaged));
  }
  cursor.budget().name_bytes -= length;
  tensor.name = name;
  cursor.set_name(name);
}

void read_shape(Cursor& cursor, TensorInfo& tensor) {
  const uint64_t offset = cursor.position();
  const uint32_t n_dims = cursor.read<uint32_t>("number of dimensions");
  if (n_dims == 0 || n_dims > limits::kDims) {
    cursor.fail_at("gguf.tensor_dims", offset,
                   format_string("%u dimensions, allowed are 1 to %u; %s", n_dims, limits::kDims, kDamaged));
  }
  tensor.n_dims = static_cast<int>(n_dims);
  uint64_t n_elems = 1;
  for (uint32_t d = 0; d < n_dims; ++d) {
    const uint64_t at = cursor.position(), extent = cursor.read<uint64_t>("shape");
    if (extent == 0 || extent > INT64_MAX) {
      cursor.fail_at(
          "gguf.tensor_shape", at,
          format_string("dimension %u is %lld, expected a positive number; %s", d, static_cast<long long>(extent), kDamaged));
    }
    tensor.ne[d] = static_cast<int64_t>(extent);
    if (!checked_mul(n_elems, extent, &n_elems) || n_elems > INT64_MAX) {
      cursor.fail_at("gguf.tensor_size", offset,
                     format_string("dimensions up to %u multiply to more than 2^63 elements; %s", d, kDamaged));
    }
  }
}

void read_type(Cursor& cursor, uint64_t alignment, TensorInfo& tensor) {
  const uint64_t offset = cursor.position();
  tensor.type_id = cursor.read<uint32_t>("tensor type");
  switch (type_status(tensor.type_id)) {
    case TypeStatus::readable:
    case TypeStatus::unreadable:
      break;
    case TypeStatus::removed:
      cursor.fail_at(
          "gguf.tensor_type", offset,
          format_string("type %u (%s) was removed from GGUF: convert the model again with current tools, or download a "
                        "newer file",
                        tensor.type_id, type_name(tensor.type_id)));
    case TypeStatus::foreign:
      cursor.fail_at(
          "gguf.tensor_type", offset,
          format_string("type %u (%s) is one of ik_llama.cpp's own, which only that program reads: download a file of types "
                        "that llama.cpp has too, such as Q4_K_M, or convert the model again",
                        tensor.type_id, type_name(tensor.type_id)));
    case TypeStatus::undefined:
      cursor.fail_at(
          "gguf.tensor_type", offset,
          format_string("type %u is not known: if the file is newer than this reader, update kimi_vl_cpp; if another "
                        "program with types of its own wrote it, use a file of common types, such as Q4_K_M; else it is "
                        "damaged: download it again",
                        tensor.type_id));
  }
  tensor.format = quant::find_format(tensor.type_id);
  const BlockSize block = block_size(tensor.type_id);
  KIMI_DCHECK(!tensor.format || (tensor.format->block_elems == static_cast<int>(block.elems) &&
                                 tensor.format->block_bytes == static_cast<int>(block.bytes)));
  if (tensor.ne[0] % block.elems != 0) {
    cursor.fail_at("gguf.tensor_block", offset,
                   format_string("rows of %lld elements in shape %s are not a multiple of the %u elements of a block of %s; %s",
                                 static_cast<long long>(tensor.ne[0]), shape_text(tensor).c_str(), block.elems,
                                 type_name(tensor.type_id), kDamaged));
  }
  uint64_t padded;
  if (!checked_mul(tensor.n_elems() / block.elems, block.bytes, &tensor.n_bytes) ||
      !align_up(tensor.n_bytes, alignment, &padded)) {
    cursor.fail_at("gguf.tensor_size", offset,
                   format_string("shape %s of %s is more than 2^64 bytes; %s", shape_text(tensor).c_str(),
                                 type_name(tensor.type_id), kDamaged));
  }
}

void read_tensor(Cursor& cursor, uint64_t alignment, TensorInfo& tensor) {
  read_name(cursor, tensor);
  read_shape(cursor, tensor);
  read_type(cursor, alignment, tensor);
  const uint64_t at = cursor.position();
  tensor.file_offset = cursor.read<uint64_t>("data offset");  // from the start of the data; made absolute by place()
  if (tensor.file_offset % alignment != 0) {
    cursor.fail_at("gguf.tensor_offset", at,
                   format_string("the data offset %llu is not a multiple of the alignment %llu; %s",
                                 static_cast<ull>(tensor.file_offset), static_cast<ull>(alignment), kDamaged));
  }
}

// Gives a tensor its place in the file.
void place(Cursor& cursor, uint64_t data_begin, TensorInfo& tensor) {
  cursor.enter("tensor");
  cursor.set_name(tensor.name);
  const uint64_t relative = tensor.file_offset;
  uint64_t begin, end;
  if (!checked_add(data_begin, relative, &begin) || !checked_add(begin, tensor.n_bytes, &end)) {
    cursor.fail_at("gguf.tensor_offset", data_begin,
                   format_string("the data offset %llu with %llu bytes of data passes 2^64; %s", static_cast<ull>(relative),
                                 static_cast<ull>(tensor.n_bytes), kDamaged));
  }
  if (end > cursor.size()) {
    cursor.fail_at(
        "gguf.truncated", begin,
        format_string(
            "its data, %s of shape %s, ends at byte %llu, but the file ends at %llu (%llu bytes are missing); the file is cut "
            "short or damaged: download or convert it again",
            type_name(tensor.type_id), shape_text(tensor).c_str(), static_cast<ull>(end), static_cast<ull>(cursor.size()),
            static_cast<ull>(end - cursor.size())));
  }
  tensor.file_offset = begin;
  if (tensor.format) tensor.data = cursor.data() + begin;
}

std::vector<uint32_t> sorted_by_offset(const std::vector<TensorInfo>& tensors) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return tensors[a].file_offset != tensors[b].file_offset ? tensors[a].file_offset < tensors[b].file_offset : a < b;
  });
  return order;
}

// No two tensors share bytes; holes and bytes at the end are legal but odd.
void check_layout(Cursor& cursor, uint64_t data_begin, uint64_t alignment, Shard& shard) {
  const std::vector<TensorInfo>& tensors = shard.tensors;
  uint64_t covered = data_begin, hole_bytes = 0;  // covered: the end of the last tensor, padded
  const TensorInfo* last = nullptr;
  for (const uint32_t i : sorted_by_offset(tensors)) {
    const TensorInfo& tensor = tensors[i];
    if (last && tensor.file_offset < last->file_offset + last->n_bytes) {
      cursor.enter("tensor");
      cursor.set_name(tensor.name);
      cursor.fail_at("gguf.tensor_overlap", tensor.file_offset,
                     "its data overlaps that of tensor " + quoted(last->name) + "; " + std::string(kDamaged));
    }
    if (tensor.file_offset > covered) hole_bytes += tensor.file_offset - covered;
    // The bytes between data_begin and offsets are multiples of the alignment, so padding from there is padding in the file.
    uint64_t padded = 0;
    align_up(tensor.file_offset - data_begin + tensor.n_bytes, alignment, &padded);
    covered = data_begin + padded;
    last = &tensor;
  }
  if (last && covered > cursor.size()) {
    cursor.enter("tensor");
    cursor.set_name(last->name);
    cursor.fail_at(
        "gguf.truncated", cursor.size(),
        format_string(
            "the padding after it ends at byte %llu, but the file ends at %llu; the file is cut short: download it again, or, if "
            "its writer does not pad the last tensor, append %llu zero bytes",
            static_cast<ull>(covered), static_cast<ull>(cursor.size()), static_cast<ull>(covered - cursor.size())));
  }
  if (hole_bytes)
    shard.warnings.push_back(
        format_string("%s: %llu bytes between tensors belong to none", cursor.path().c_str(), static_cast<ull>(hole_bytes)));
  if (covered < cursor.size()) {
    shard.warnings.push_back(format_string("%s: %llu bytes after the last tensor (from byte %llu on) belong to none",
                                           cursor.path().c_str(), static_cast<ull>(cursor.size() - covered),
                                           static_cast<ull>(covered)));
  }
}

}  // namespace

void read_tensors(Cursor& cursor, uint64_t n_tensors, uint64_t alignment, Shard& shard) {
  shard.tensors.resize(n_tensors);  // at most limits::kTensors, and the file has bytes for them
  for (uint64_t i = 0; i < n_tensors; ++i) {
    cursor.enter("tensor", i, n_tensors);
    read_tensor(cursor, alignment, shard.tensors[i]);
  }
  uint64_t data_begin = 0;
  align_up(cursor.position(), alignment, &data_begin);  // a position in a file: cannot overflow
  for (TensorInfo& tensor : shard.tensors) place(cursor, data_begin, tensor);
  check_layout(cursor, data_begin, alignment, shard);
}

}  // namespace kimi::gguf
