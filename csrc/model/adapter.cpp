#include "model/adapter.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace kimi {
namespace {

using Matrices = std::map<std::string, Matrix*>;

void add_swiglu(const std::string& block, const std::string& suffix, Swiglu* w, Matrices* found) {
  (*found)[block + "ffn_gate" + suffix] = &w->gate;
  (*found)[block + "ffn_up" + suffix] = &w->up;
  (*found)[block + "ffn_down" + suffix] = &w->down;
}

// The matrices that an adapter may change, without ".weight". Routers, embeddings and the patch convolution are not among them.
Matrices matrices_of(TextWeights* text, VisionWeights* vision) {
  Matrices found;
  found["output"] = &text->output;
  for (size_t i = 0; i < text->layers.size(); ++i) {
    DecoderLayerWeights& layer = text->layers[i];
    const std::string block = "blk." + std::to_string(i) + ".";
    found[block + "attn_q"] = &layer.attn_q;
    found[block + "attn_kv_a_mqa"] = &layer.attn_kv_a_mqa;
    found[block + "attn_k_b"] = &layer.attn_k_b;
    found[block + "attn_v_b"] = &layer.attn_v_b;
    found[block + "attn_output"] = &layer.attn_output;
    add_swiglu(block, "", &layer.dense, &found);
    add_swiglu(block, "_exps", &layer.routed, &found);
    add_swiglu(block, "_shexp", &layer.shared, &found);
  }
  for (size_t i = 0; vision && i < vision->blocks.size(); ++i) {
    VitBlockWeights& b = vision->blocks[i];
    const std::string block = "v.blk." + std::to_string(i) + ".";
    found[block + "attn_q"] = &b.attn_q;
    found[block + "attn_k"] = &b.attn_k;
    found[block + "attn_v"] = &b.attn_v;
    found[block + "attn_out"] = &b.attn_out;
    found[block + "ffn_up"] = &b.ffn_up;
    found[block + "ffn_down"] = &b.ffn_down;
  }
  if (vision) {
    found["mm.1"] = &vision->mm_1;
    found["mm.2"] = &vision->mm_2;
  }
  return found;
}

Matrix* matrix_of(const Matrices& matrices, const AdapterFactors& change) {
  const size_t dot = change.name.rfind(".weight");
  const auto found = matrices.find(change.name.substr(0, dot));
  KIMI_CHECK(found != matrices.end() && *found->second && dot != std::string::npos, ErrorKind::bad_model_file, "lora.module",
             "%s is not a matrix of this model that an adapter can change", change.name.c_str());
  const Matrix& w = *found->second;
  KIMI_CHECK(change.index >= 0 && change.index < w.count && change.rows == w.rows && change.cols == w.cols && change.rank > 0,
             ErrorKind::bad_model_file, "lora.shape",
             "%s: factors of rank %lld for matrix %lld of shape [%lld, %lld], expected one of %lld of shape [%lld, %lld]",
             change.name.c_str(), static_cast<long long>(change.rank), static_cast<long long>(change.index),
             static_cast<long long>(change.rows), static_cast<long long>(change.cols), static_cast<long long>(w.count),
             static_cast<long long>(w.rows), static_cast<long long>(w.cols));
  return found->second;
}

}  // namespace

AlignedBuffer<float>& Adapters::copy_of(const float* from, int64_t n) {
  AlignedBuffer<float>& copy = factors_.emplace_back(static_cast<size_t>(n));
  std::copy_n(from, n, copy.data());
  bytes_ += static_cast<uint64_t>(n) * sizeof(float);
  return copy;
}

int32_t Adapters::add(Backend& backend, const std::vector<AdapterFactors>& changes, TextWeights* text, VisionWeights* vision) {
  KIMI_CHECK(backend.takes_adapters(), ErrorKind::unsupported, "lora.backend",
             "the backend %s cannot apply an adapter beside a model: merge the adapter into the file, or use the cpu backend",
             backend.name());
  const Matrices matrices = matrices_of(text, vision);
  for (const AdapterFactors& change : changes) matrix_of(matrices, change);
  for (const AdapterFactors& change : changes) {
    Matrix& w = *matrix_of(matrices, change);
    if (!w.sides) w.sides = &sides_.emplace_back();
    const auto own = std::find_if(sides_.begin(), sides_.end(), [&](const SideProducts& sides) { return &sides == w.sides; });
    own->at(n_, change.index, w.count) = {change.rank, change.rows, change.cols,
                                          copy_of(change.a, change.rank * change.cols).data(),
                                          copy_of(change.b, change.rank * change.rows).data()};
  }
  return n_++;
}

}  // namespace kimi
