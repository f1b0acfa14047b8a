#include "model/moonvit.h"

#include <algorithm>

namespace kimi {
namespace {

// Rows whose inner activations are held at a time; 4096 would be 1 % faster and take 86 MB more.
constexpr int64_t kMlpRows = 1024;

}  // namespace

// Patches through the convolution as a product, plus positions.
void MoonVit::embed_patches(Backend& backend, const Picture& picture, TowerPass* pass) {
  const int64_t p = config_.patch_size, n = pass->n_patches();
  Buffer patches;
  PatchArgs cut{};
  cut.pixels = picture.pixels();
  cut.height = picture.height();
  cut.width = picture.width();
  cut.patch_size = p;
  cut.mean = config_.image_mean;
  cut.std = config_.image_std;
  cut.out = backend.room(&patches, n * 3 * p * p);
  backend.patches(cut);
  LinearArgs conv{};
  conv.x = patches.floats();
  conv.n = n;
  conv.w = weights_.patch_embd;
  conv.bias = weights_.patch_embd_bias.floats();
  conv.compute_type = compute_type_;
  conv.out = pass->x_.floats();
  backend.linear(conv);
  backend.add(pass->positions_->embeddings(), n * config_.hidden_size, pass->x_.floats());
}

void MoonVit::block(Backend& backend, const VitBlockWeights& w, const TowerPass& pass) {
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size, n = pass.n_patches();
  const int32_t* adapters = pass.adapters_.empty() ? nullptr : pass.adapters_.data();
  float* x = pass.x_.floats();
  backend.layer_norm(x, w.ln1_weight.floats(), w.ln1_bias.floats(), config_.layer_norm_eps, n, hidden, normed_.floats());
  VitAttentionArgs attention{};
  attention.x = normed_.floats();
  attention.n = n;
  attention.hidden = hidden;
  attention.num_heads = config_.num_attention_heads;
  attention.q = w.attn_q;
  attention.k = w.attn_k;
  attention.v = w.attn_v;
  attention.o = w.attn_out;
  attention.q_bias = w.attn_q_bias.floats();
  attention.k_bias = w.attn_k_bias.floats();
  attention.v_bias = w.attn_v_bias.floats();
  attention.o_bias = w.attn_out_bias.floats();
  attention.cos_sin = pass.positions_->cos_sin();
  attention.compute_type = compute_type_;
  attention.adapters = adapters;
  attention.out = x;
  backend.vit_attention(attention);

  backend.layer_norm(x, w.ln2_weight.floats(), w.ln2_bias.floats(), config_.layer_norm_eps, n, hidden, normed_.floats());
  backend.room(&inner_, std::min(n, kMlpRows) * inner);
  for (int64_t row = 0; row < n; row += kMlpRows) {
    LinearArgs up{};
    up.x = normed_.floats() + row * hidden;
    up.n = std::min(kMlpRows, n - row);
    up.w = w.ffn_up;
    up.bias = w.ffn_up_bias.floats();
    up.activation = Activation::gelu_tanh;
    up.compute_type = compute_type_;
    up.adapters = adapters;
    up.out = inner_.floats();
    backend.linear(up);
    LinearArgs down{};
    down.x = inner_.floats();
    down.n = up.n;
    down.w = w.ffn_down;
    down.bias = w.ffn_down_bias.floats();
    down.add = true;
    down.compute_type = compute_type_;
    down.adapters = adapters;
    down.out = x + row * hidden;
    backend.linear(down);
  }
}

void MoonVit::begin(Backend& backend, const Picture& picture, int32_t adapter, TowerPass* pass) {
  pass->grid_h_ = picture.grid_h();
  pass->grid_w_ = picture.grid_w();
  pass->block_ = 0;
  pass->adapters_.assign(adapter == kNoAdapter ? 0 : static_cast<size_t>(pass->n_patches()), adapter);
  if (!positions_ || !positions_->are_of(picture.grid_h(), picture.grid_w()))
    positions_ = std::make_shared<PatchPositions>(backend, config_, weights_, picture.grid_h(), picture.grid_w());
  pass->positions_ = positions_;
  backend.room(&pass->x_, pass->n_patches() * config_.hidden_size);
  embed_patches(backend, picture, pass);
}

void MoonVit::advance(Backend& backend, TowerPass* pass) {
  backend.room(&normed_, pass->n_patches() * config_.hidden_size);
  block(backend, weights_.blocks[static_cast<size_t>(pass->block_++)], *pass);
  backend.check_interrupt();
}

const float* MoonVit::finish(Backend& backend, TowerPass* pass) {
  float* x = pass->x_.floats();
  backend.layer_norm(x, weights_.post_ln_weight.floats(), weights_.post_ln_bias.floats(), config_.layer_norm_eps,
                     pass->n_patches(), config_.hidden_size, x);
  return x;
}

}  // namespace kimi
