#include "model/moonvit.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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
    std::memcpy(out, table, static_cast<size_t>(side * side * channels) * sizeof(float));
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

// Pixels to patch vectors [n, channel, y, x], normalised, through the convolution as a product, plus positions.
void MoonVit::embed_patches(Backend& backend, const Pixels& pixels, float* out) {
  const int64_t p = config_.patch_size, grid_h = pixels.height / p, grid_w = pixels.width / p, n = grid_h * grid_w,
                floats = 3 * p * p;
  float value[3][256];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) value[c][v] = (static_cast<float>(v) / 255.0f - config_.image_mean[c]) / config_.image_std[c];
  AlignedBuffer<float> patches(static_cast<size_t>(n * floats));
  for (int64_t row = 0; row < grid_h; ++row)
    for (int64_t column = 0; column < grid_w; ++column) {
      float* patch = patches.data() + (row * grid_w + column) * floats;
      for (int64_t y = 0; y < p; ++y) {
        const uint8_t* source = pixels.data + ((row * p + y) * pixels.width + column * p) * 3;
        for (int64_t x = 0; x < p; ++x)
          for (int64_t c = 0; c < 3; ++c) patch[(c * p + y) * p + x] = value[c][source[3 * x + c]];
      }
    }
  LinearArgs conv{};
  conv.x = patches.data();
  conv.n = n;
  conv.w = weights_.patch_embd;
  conv.bias = weights_.patch_embd_bias.data();
  conv.numbers = numbers_;
  conv.out = out;
  backend.linear(conv);
  AlignedBuffer<float> positions(static_cast<size_t>(n * config_.hidden_size));
  resample_position_table(weights_.position_embd.data(), config_.position_side, config_.hidden_size, grid_h, grid_w,
                          positions.data());
  backend.add(positions.data(), n * config_.hidden_size, out);
}

void MoonVit::block(Backend& backend, const VitBlockWeights& w, const float* cos_sin, int64_t n, float* x) {
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  backend.layer_norm(x, w.ln1_weight.data(), w.ln1_bias.data(), config_.layer_norm_eps, n, hidden, normed_.data());
  VitAttentionArgs attention{};
  attention.x = normed_.data();
  attention.n = n;
  attention.hidden = hidden;
  attention.num_heads = config_.num_attention_heads;
  attention.q = w.attn_q;
  attention.k = w.attn_k;
  attention.v = w.attn_v;
  attention.o = w.attn_out;
  attention.q_bias = w.attn_q_bias.data();
  attention.k_bias = w.attn_k_bias.data();
  attention.v_bias = w.attn_v_bias.data();
  attention.o_bias = w.attn_out_bias.data();
  attention.cos_sin = cos_sin;
  attention.numbers = numbers_;
  attention.out = x;
  backend.vit_attention(attention);

  backend.layer_norm(x, w.ln2_weight.data(), w.ln2_bias.data(), config_.layer_norm_eps, n, hidden, normed_.data());
  inner_.resize(static_cast<size_t>(std::min(n, kMlpRows) * inner));
  for (int64_t row = 0; row < n; row += kMlpRows) {
    LinearArgs up{};
    up.x = normed_.data() + row * hidden;
    up.n = std::min(kMlpRows, n - row);
    up.w = w.ffn_up;
    up.bias = w.ffn_up_bias.data();
    up.activation = Activation::gelu_tanh;
    up.numbers = numbers_;
    up.out = inner_.data();
    backend.linear(up);
    LinearArgs down{};
    down.x = inner_.data();
    down.n = up.n;
    down.w = w.ffn_down;
    down.bias = w.ffn_down_bias.data();
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
  pass->x_.resize(static_cast<size_t>(pass->n_patches() * config_.hidden_size));
  embed_patches(backend, pixels, pass->x_.data());
  pass->cos_sin_ =
      rope_2d_cos_sin(pass->grid_h_, pass->grid_w_, config_.hidden_size / config_.num_attention_heads, config_.split_rope);
}

void MoonVit::advance(Backend& backend, TowerPass* pass) {
  normed_.resize(static_cast<size_t>(pass->n_patches() * config_.hidden_size));
  block(backend, weights_.blocks[static_cast<size_t>(pass->block_++)], pass->cos_sin_.data(), pass->n_patches(), pass->x_.data());
  backend.check_interrupt();
}

void MoonVit::finish(Backend& backend, const TowerPass& pass, float* out) {
  backend.layer_norm(pass.x_.data(), weights_.post_ln_weight.data(), weights_.post_ln_bias.data(), config_.layer_norm_eps,
                     pass.n_patches(), config_.hidden_size, out);
}

void MoonVit::project(Backend& backend, const TowerPass& pass, float* out) {
  AlignedBuffer<float> features(static_cast<size_t>(pass.n_patches() * config_.hidden_size));
  finish(backend, pass, features.data());
  const int64_t grid_h = pass.grid_h(), grid_w = pass.grid_w();
  const int64_t hidden = config_.hidden_size, merge = config_.merge, n = grid_h * grid_w, blocks = n / (merge * merge),
                merged = merge * merge * hidden;
  AlignedBuffer<float> gathered(static_cast<size_t>(n * hidden)), inner(static_cast<size_t>(blocks * merged));
  // Four neighbours side by side, in reading order.
  for (int64_t row = 0; row < grid_h; ++row)
    for (int64_t column = 0; column < grid_w; ++column) {
      const int64_t block = row / merge * (grid_w / merge) + column / merge, part = row % merge * merge + column % merge;
      std::memcpy(gathered.data() + block * merged + part * hidden, features.data() + (row * grid_w + column) * hidden,
                  static_cast<size_t>(hidden) * sizeof(float));
    }
  backend.layer_norm(gathered.data(), weights_.mm_input_norm_weight.data(), weights_.mm_input_norm_bias.data(),
                     config_.projector_norm_eps, n, hidden, gathered.data());
  LinearArgs first{};
  first.x = gathered.data();
  first.n = blocks;
  first.w = weights_.mm_1;
  first.bias = weights_.mm_1_bias.data();
  first.activation = Activation::gelu_erf;
  first.numbers = numbers_;
  first.out = inner.data();
  backend.linear(first);
  LinearArgs second{};
  second.x = inner.data();
  second.n = blocks;
  second.w = weights_.mm_2;
  second.bias = weights_.mm_2_bias.data();
  second.numbers = numbers_;
  second.out = out;
  backend.linear(second);
}

}  // namespace kimi
