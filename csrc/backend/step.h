// Step: the rows of a batch, which sessions and positions they are, and which results are wanted. The values that differ from
// one step to the next are all here, so that a backend can keep the operations of a step and run them again with others.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/kv_view.h"
#include "backend/tensor.h"

namespace kimi {

// The form in which a row is computed: two ways to the same function, which round differently. The caller names the form of each
// row, from the content of its sequence alone (docs/architecture.md, "The same bits"); a backend must give a row the same bits
// whatever the batch holds besides. In a batch the expanded rows come first.
//   expanded  attention over keys and values made of the latents; float weights are unpacked for a GEMM
//   absorbed  attention in the latent space, keys split by the row's own position; float weights are streamed
// Where quantized weights times int8 activations give the same bits streamed or unpacked, a backend takes what is faster.
enum class RowForm : uint8_t { absorbed, expanded };

class Step {
 public:
  // The rows of one session and one form. Every position before the last one is in the cache or elsewhere in the batch.
  struct Slice {
    RowForm form;
    KvView cache;
    int64_t row0, n;            // rows of the batch
    int64_t n_wanted, wanted0;  // results are wanted of the last n_wanted; the first of them among all wanted rows
    int32_t adapter;            // whose side products are added to its rows, or kNoAdapter
  };
  // Tokens whose embeddings are rows [row0, row0 + n) of the batch.
  struct Tokens {
    int64_t row0, first, n;  // first: in ids()
  };

  virtual ~Step() = default;
  void clear();
  // The next rows; expanded ones first. positions: ascending.
  void add_slice(RowForm form, const KvView& cache, const std::vector<int32_t>& positions, int64_t n_wanted,
                 int32_t adapter = kNoAdapter);
  void add_tokens(int64_t row0, const int32_t* ids, int64_t n);

  const std::vector<Slice>& slices() const { return slices_; }
  const std::vector<Tokens>& tokens() const { return tokens_; }
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<int32_t>& positions() const { return positions_; }  // [n_rows]
  int64_t n_rows() const { return static_cast<int64_t>(positions_.size()); }
  int64_t n_expanded() const { return n_expanded_; }  // the first rows
  int64_t n_wanted() const { return n_wanted_; }
  int64_t n_wanted_expanded() const { return n_wanted_expanded_; }  // the first of those wanted
  // [n_rows], [n_wanted]: the adapter of each row, on the host; nullptr: no row has one.
  const int32_t* adapters() const { return any_adapter_ ? adapters_.data() : nullptr; }
  const int32_t* wanted_adapters() const { return any_adapter_ ? wanted_adapters_.data() : nullptr; }

 private:
  std::vector<Slice> slices_;
  std::vector<Tokens> tokens_;
  std::vector<int32_t> ids_, positions_, adapters_, wanted_adapters_;
  bool any_adapter_ = false;
  int64_t n_expanded_ = 0, n_wanted_ = 0, n_wanted_expanded_ = 0;
};

}  // namespace kimi
