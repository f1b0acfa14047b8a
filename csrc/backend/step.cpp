#include "backend/step.h"

namespace kimi {

void Step::clear() {
  slices_.clear();
  tokens_.clear();
  ids_.clear();
  positions_.clear();
  adapters_.clear();
  wanted_adapters_.clear();
  any_adapter_ = false;
  n_expanded_ = n_wanted_ = n_wanted_expanded_ = 0;
}

void Step::add_slice(RowForm form, const KvView& cache, const std::vector<int32_t>& positions, int64_t n_wanted,
                     int32_t adapter) {
  const auto n = static_cast<int64_t>(positions.size());
  slices_.push_back({form, cache, n_rows(), n, n_wanted, n_wanted_, adapter});
  positions_.insert(positions_.end(), positions.begin(), positions.end());
  n_wanted_ += n_wanted;
  adapters_.resize(positions_.size(), adapter);
  wanted_adapters_.resize(static_cast<size_t>(n_wanted_), adapter);
  any_adapter_ = any_adapter_ || adapter != kNoAdapter;
  if (form != RowForm::expanded) return;
  n_expanded_ = n_rows();
  n_wanted_expanded_ = n_wanted_;
}

void Step::add_tokens(int64_t row0, const int32_t* ids, int64_t n) {
  tokens_.push_back({row0, static_cast<int64_t>(ids_.size()), n});
  ids_.insert(ids_.end(), ids, ids + n);
}

}  // namespace kimi
