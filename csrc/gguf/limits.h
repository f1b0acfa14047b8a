// What a GGUF file may ask of us, on one page. Everything beyond is refused with the limit in the message.
#pragma once
#include <cstdint>

namespace kimi::gguf::limits {

constexpr uint64_t kKeys = 65536;            // metadata keys of a shard
constexpr uint64_t kTensors = 65536;         // tensors of all shards
constexpr uint64_t kShards = 1024;           // parts of a split file
constexpr uint64_t kKeyBytes = 65535;        // GGUF's own limit
constexpr uint64_t kStringBytes = 16 << 20;  // a string value, or a string in an array
constexpr uint64_t kArrayElems = 16 << 20;   // arrays do not nest
constexpr uint64_t kTensorNameBytes = 63;    // ggml's buffer of 64 holds a NUL too
constexpr uint32_t kDims = 4;
constexpr uint64_t kMinAlignment = 8, kMaxAlignment = 1 << 20, kDefaultAlignment = 32;

// Of all shards together. The largest vocabularies of today take about 20 MiB.
constexpr uint64_t kHeaderBytes = 64 << 20;  // metadata and tensor directory: what has to be walked
constexpr uint64_t kNameBytes = 8 << 20;     // keys and tensor names: what is copied

// The least that an entry takes in the file; a count is checked against it before anything is reserved.
constexpr uint64_t kMinKeyEntryBytes = 8 + 1 + 4 + 1;             // length, 1 character, type, u8
constexpr uint64_t kMinTensorEntryBytes = 8 + 1 + 4 + 8 + 4 + 8;  // length, 1 character, n_dims, 1 dimension, type, offset

}  // namespace kimi::gguf::limits
