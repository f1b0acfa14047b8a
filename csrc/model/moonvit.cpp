#include "model/moonvit.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace kimi {
namespace {

constexpr int64_t kMlpRows =
    1024;  // rows whose inner activations are held at a time; 4096 would be 1 % faster and take 86 MB more

struct Taps {
  int64_t index[4];
  float weight[4];
};

Taps cubic_taps(int64_t i, int64_t in, int64_t out) {
  constexpr double a = -0.75;
  const double source = (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
  const double floor = std::floor(source), t = source - floor;
  const auto inner = [](double x) { return ((a + 2) * x - (a + 3)) * x * x + 1; };
  const auto outer = [](double x) { return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; };
  Taps taps;
  const double weights[4] = {outer(t + 1), inner(t), inner(1 - t), outer(2 - t)};
  for (int k = 0; k < 4; ++k) {
    taps.index[k] = std::clamp<int64_t>(static_cast<int64_t>(floor) - 1 + k, 0, in - 1);
    taps.weight[k] = static_cast<float>(weights[k]);
  }
  return taps;
}

}  // namespace

void resample_position_table(const float* table, int64_t side, int64_t channels, int64_t height, int64_t width, float* out) {
  if (height == side && width == side) {
    std::copy_n(table, side * side * channels, out);
    return;
  }
  // Columns first, [side, width, channels], then rows.
  std::vector<float> wide(static_cast<size_t>(side * width * channels));
  for (int64_t x = 0; x < width; ++x) {
    const Taps taps = cubic_taps(x, side, width);
    for (int64_t y = 0; y < side; ++y) {
      float* to = wide.data() + (y * width + x) * channels;
      const float* row = table + y * side * channels;
      for (int64_t c = 0; c < channels; ++c)
        to[c] = taps.weight[0] * row[taps.index[0] * channels + c] + taps.weight[1] * row[taps.index[1] * channels + c] +
                taps.weight[2] * row[taps.index[2] * channels + c] + taps.weight[3] * row[taps.index[3] * channels + c];
    }
  }
  const int64_t row_floats = width * channels;
  for (int64_t y = 0; y < height; ++y) {
    const Taps taps = cubic_taps(y, side, height);
    const float *r0 = wide.data() + taps.index[0] * row_floats, *r1 = wide.data() + taps.index[1] * row_floats,
                *r2 = wide.data() + taps.index[2] * row_floats, *r3 = wide.data() + taps.index[3] * row_floats;
    float* to = out + y * row_floats;
    for (int64_t i = 0; i < row_floats; ++i)
      to[i] = taps.weight[0] * r0[i] + taps.weight[1] * r1[i] + taps.weight[2] * r2[i] + taps.weight[3] * r3[i];
  }
}

std::vector<float> rope_2d_cos_sin(int64_t height, int64_t width, int64_t head_dim, bool split) {
  const int64_t pairs = head_dim / 2, freqs = head_dim / 4;
  std::vector<float> out(static_cast<size_t>(height * width * pairs * 2));
  for (int64_t j = 0; j < pairs; ++j) {
    const int64_t i = split ? j % freqs : j / 2;
    const bool by_column = split ? j < freqs : j % 2 == 0;
    const double freq = std::pow(10000.0, -4.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const int64_t n = by_column ? width : height;
    for (int64_t position = 0; position < n; ++position) {
      const float c = static_cast<float>(std::cos(static_cast<double>(position) * freq)),
                  s = static_cast<float>(std::sin(static_cast<double>(position) * freq));
      for (int64_t other = 0; other < (by_column ? height : width); ++other) {
        const int64_t patch = by_column ? other * width + position : position * width + other;
        out[static_cast<size_t>((patch * pairs + j) * 2)] = c;
        out[static_cast<size_t>((patch * pairs + j) * 2 + 1)] = s;
      }
    }
  }
  return out;
}

void check_pixels(const VisionConfig& config, const Pixels& pixels) {
  const int64_t unit = config.patch_size * config.merge, limit = config.max_grid_side * config.patch_size;
  KIMI_CHECK(pixels.height > 0 && pixels.width > 0 && pixels.height % unit == 0 && pixels.width % unit == 0, ErrorKind::bad_image,
             "image.size",
             "picture of %lld x %lld pixels: both sides must be positive multiples of %lld (the processor pads them)",
             static_cast<long long>(pixels.width), static_cast<long long>(pixels.height), static_cast<long long>(unit));
  KIMI_CHECK(
      pixels.height < limit && pixels.width < limit, ErrorKind::bad_image, "image.too_many_patches",
      "picture of %lld x %lld pixels: a side must stay below %lld pixels (%lld patches): scale it down or cut it into parts",
      static_cast<long long>(pixels.width), static_cast<long long>(pixels.height), static_cast<long long>(limit),
      static_cast<long long>(config.max_grid_side));
}

// Patches through the convolution as a product, plus positions.
void MoonVit::embed_patches(Backend& backend, const Pixels& pixels, TowerPass* pass) {
  const int64_t p = config_.patch_size, hidden = config_.hidden_size, n = pass->n_patches();
  Buffer patches;
  PatchArgs cut{};
  cut.pixels = pixels.data;
  cut.height = pixels.height;
  cut.width = pixels.width;
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
  conv.numbers = numbers_;
  conv.out = pass->x_.floats();
  backend.linear(conv);
  AlignedBuffer<float> positions(static_cast<size_t>(n * hidden));
  resample_position_table(weights_.position_embd.host().data(), config_.position_side, hidden, pass->grid_h_, pass->grid_w_,
                          positions.data());
  const Buffer adopted = backend.adopt(positions.data(), n * hidden);
  backend.add(adopted.floats(), n * hidden, pass->x_.floats());
}

void MoonVit::block(Backend& backend, const VitBlockWeights& w, const float* cos_sin, int64_t n, float* x) {
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
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
  attention.cos_sin = cos_sin;
  attention.numbers = numbers_;
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
    up.numbers = numbers_;
    up.out = inner_.floats();
    backend.linear(up);
    LinearArgs down{};
    down.x = inner_.floats();
    down.n = up.n;
    down.w = w.ffn_down;
    down.bias = w.ffn_down_bias.floats();
    down.add = true;
    down.numbers = numbers_;
    down.out = x + row * hidden;
    backend.linear(down);
  }
}

void MoonVit::begin(Backend& backend, const Pixels& pixels, TowerPass* pass) {
  pass->grid_h_ = pixels.height / config_.patch_size;
  pass->grid_w_ = pixels.width / config_.patch_size;
  pass->block_ = 0;
  backend.room(&pass->x_, pass->n_patches() * config_.hidden_size);
  embed_patches(backend, pixels, pass);
  pass->angles_ =
      rope_2d_cos_sin(pass->grid_h_, pass->grid_w_, config_.hidden_size / config_.num_attention_heads, config_.split_rope);
  pass->cos_sin_ = backend.adopt(pass->angles_.data(), static_cast<int64_t>(pass->angles_.size()));
}

void MoonVit::advance(Backend& backend, TowerPass* pass) {
  backend.room(&normed_, pass->n_patches() * config_.hidden_size);
  block(backend, weights_.blocks[static_cast<size_t>(pass->block_++)], pass->cos_sin_.floats(), pass->n_patches(),
        pass->x_.floats());
  backend.check_interrupt();
}

const float* MoonVit::finish(Backend& backend, TowerPass* pass) {
  float* x = pass->x_.floats();
  backend.layer_norm(x, weights_.post_ln_weight.floats(), weights_.post_ln_bias.floats(), config_.layer_norm_eps,
                     pass->n_patches(), config_.hidden_size, x);
  return x;
}

}  // namespace kimi
