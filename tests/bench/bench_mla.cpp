// One layer of attention of the model's size, through the backend: what a new token, or a chunk of a prompt, costs at a depth.
// As many caches as the model has layers take turns, so that they come from memory as they do in the model.
//
//   bench_mla [depth=16384] [tokens=1] [isa=auto] [threads=2] [calls=5] [processor=0]
//
// processor=1 counts the processors' time instead, of all threads: for a machine that is busy, with threads=1.
// For every type of the cache: the best and the median time a layer, what of it is beyond that of an empty cache, and the
// difference of the results to those with float32 and float activations.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_options.h"
#include "backend/kv_view.h"
#include "base/aligned_buffer.h"
#include "quant/encode.h"
#include "quant/format.h"
#include "settings.h"

using namespace kimi;

namespace {

constexpr int64_t kHidden = 2048, kHeads = 16, kNope = 128, kRope = 64, kValue = 128, kRank = 512, kLayers = 27;
constexpr int64_t kFilled = 512;  // rows that are computed; the others repeat them

struct Options {
  std::string isa = "auto";
  int64_t depth = 16384, tokens = 1;
  int threads = 2, calls = 5;
  bool processor = false;
} options;

double now() {
  if (options.processor) {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<float> random_floats(int64_t n, float size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& v : out) v = normal(random);
  return out;
}

struct Weights {
  std::vector<uint8_t> bytes;
  Matrix matrix;
  Weights(int64_t rows, int64_t cols, int64_t count, unsigned seed) {
    const quant::Format& format = quant::format_of(quant::Type::Q8_0);
    const std::vector<float> values = random_floats(rows * cols * count, 1.0f / std::sqrt(static_cast<float>(cols)), seed);
    const int64_t row_bytes = format.row_bytes(cols);
    bytes.resize(static_cast<size_t>(row_bytes * rows * count));
    const quant::RowEncoder encode = quant::encoder_of(quant::select_encoders("auto"), format.type);
    for (int64_t r = 0; r < rows * count; ++r) encode(values.data() + r * cols, nullptr, bytes.data() + r * row_bytes, cols);
    matrix = {format.type, bytes.data(), rows, cols, row_bytes, count, row_bytes * rows};
  }
};

struct Layer {
  Weights q{kHeads * (kNope + kRope), kHidden, 1, 1}, kv_a{kRank + kRope, kHidden, 1, 2}, k_b{kRank, kNope, kHeads, 3},
      v_b{kValue, kRank, kHeads, 4}, o{kHidden, kHeads* kValue, 1, 5};
  std::vector<float> norm = std::vector<float>(kRank, 1.0f), frequencies;
  Layer() {
    for (int64_t i = 0; i < kRope / 2; ++i)
      frequencies.push_back(static_cast<float>(std::pow(800000.0, -2.0 * static_cast<double>(i) / kRope)));
  }
  void run(Backend& backend, const std::vector<float>& x, int64_t n, int64_t past, const KvView& cache, int64_t layer,
           std::vector<float>* out) const {
    std::vector<int32_t> positions(static_cast<size_t>(n));
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(past));
    const RowForm form = n >= kPagePositions ? RowForm::expanded : RowForm::absorbed;
    Step step;
    step.add_slice(form, cache, positions, n);
    MlaArgs args{};
    args.x = x.data();
    args.step = &step;
    args.layer = layer;
    args.num_heads = kHeads;
    args.qk_nope_head_dim = kNope;
    args.qk_rope_head_dim = kRope;
    args.v_head_dim = kValue;
    args.kv_lora_rank = kRank;
    args.q = q.matrix;
    args.kv_a = kv_a.matrix;
    args.kv_a_norm = norm.data();
    args.kv_a_norm_eps = 1e-6f;
    args.k_b = k_b.matrix;
    args.v_b = v_b.matrix;
    args.o = o.matrix;
    args.scale = 1.0f / std::sqrt(static_cast<float>(kNope + kRope));
    args.rope_inv_freq = frequencies.data();
    args.rope_mscale = 1.0f;
    out->assign(static_cast<size_t>(n * kHidden), 0.0f);
    args.out = out->data();
    backend.mla_attention(args);
  }
};

std::unique_ptr<Backend> backend_with(bool float_activations) {
  CpuOptions cpu;
  cpu.n_threads = options.threads;
  cpu.isa = options.isa;
  cpu.float_activations = float_activations;
  return make_cpu_backend(cpu);
}

// A cache of kLayers layers, filled to the depth.
struct Caches {
  KvPageLayout layout;
  AlignedBuffer<uint8_t> bytes;
  std::vector<uint8_t*> pages;
  Caches(KvType type, Backend& backend, const Layer& layer) : layout{type, kLayers, KvRow(type, kRank, kRope).bytes} {
    const int64_t n_pages = (options.depth + options.tokens + kFilled) / kPagePositions + 1, filled = kFilled / kPagePositions;
    bytes.resize(static_cast<size_t>(n_pages * layout.bytes()));
    for (int64_t i = 0; i < n_pages; ++i) pages.push_back(bytes.data() + i * layout.bytes());
    std::vector<float> out;
    layer.run(backend, random_floats(kFilled * kHidden, 1.0f, 9), kFilled, 0, view(), 0, &out);
    for (int64_t page = 0; page < n_pages; ++page)
      for (int64_t i = 0; i < kLayers; ++i)
        if (page >= filled || i > 0)
          std::memcpy(pages[static_cast<size_t>(page)] + i * layout.layer_bytes(), pages[static_cast<size_t>(page % filled)],
                      static_cast<size_t>(layout.layer_bytes()));
  }
  KvView view() const { return {pages.data(), layout}; }
};

std::vector<double> timed(Backend& backend, const Layer& layer, const std::vector<float>& x, int64_t past, Caches& caches,
                          std::vector<float>* out) {
  std::vector<double> times;
  for (int call = 0; call < options.calls; ++call) {
    const double start = now();
    for (int64_t i = 0; i < kLayers; ++i) layer.run(backend, x, options.tokens, past, caches.view(), i, out);
    times.push_back((now() - start) / kLayers);
  }
  std::sort(times.begin(), times.end());
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  const bench::Settings settings = {{"depth", &options.depth}, {"tokens", &options.tokens},
                                    {"isa", &options.isa},     {"threads", &options.threads},
                                    {"calls", &options.calls}, {"processor", &options.processor}};
  if (!bench::read_settings(argc, argv, settings)) return 2;
  options.calls = std::max(1, options.calls);
  const std::unique_ptr<Backend> backend = backend_with(false), exact = backend_with(true);
  const Layer layer;
  const std::vector<float> x = random_floats(options.tokens * kHidden, 1.0f, 8);
  std::vector<float> want;
  for (const auto& [type, name] : {std::pair{KvType::f32, "f32"}, {KvType::f16, "f16"}, {KvType::q8_0, "q8_0"}}) {
    Caches caches(type, *backend, layer);
    std::vector<float> got;
    const std::vector<double> empty = timed(*backend, layer, x, 0, caches, &got),
                              deep = timed(*backend, layer, x, options.depth, caches, &got);
    if (want.empty()) layer.run(*exact, x, options.tokens, options.depth, caches.view(), 0, &want);
    double difference = 0, size = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += (got[i] - want[i]) * (got[i] - want[i]);
      size += want[i] * want[i];
    }
    const double median = deep[deep.size() / 2], beyond = median - empty[empty.size() / 2];
    std::printf(
        "%-11s %-4s n=%ld depth %ld: %8.3f ms a layer (best %.3f), %8.3f ms of it for the depth = %6.1f ns a key; error %.1e\n",
        backend->isa(), name, static_cast<long>(options.tokens), static_cast<long>(options.depth), median * 1e3, deep[0] * 1e3,
        beyond * 1e3, beyond * 1e9 / static_cast<double>(options.depth), std::sqrt(difference / size));
  }
}
