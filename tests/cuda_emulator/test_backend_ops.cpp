// Every operation of the CUDA backend beside the CPU's. In int8 both round activations alike and take exact sums of a group, so
// that what differs is the order of float sums.
#include "backend/cuda/layout.h"
#include "backend/cuda/repack.h"
#include "backend_support.h"
#include "base/error.h"

using namespace kimi;
using namespace kimi::test;

namespace {

constexpr double kFloatOrder = 2e-6;  // relative to the norm of the results
constexpr double kBf16 = 1e-2;

const std::vector<quant::Type> kQuantized = {
#define KIMI_NAME(name) quant::Type::name,
    KIMI_CUDA_FORMATS(KIMI_NAME)
#undef KIMI_NAME
};
constexpr quant::Type kFloats[] = {quant::Type::F32, quant::Type::F16, quant::Type::BF16};

std::vector<float> linear_on(Backend& backend, const HostMatrix& w, const std::vector<float>& x, ComputeType compute_type,
                             const std::vector<float>* bias = nullptr, Activation activation = Activation::none, bool add = false,
                             int64_t n_expanded = kAllRows) {
  On on(backend);
  const int64_t n = static_cast<int64_t>(x.size()) / w.view.cols;
  LinearArgs args{};
  args.x = on.up(x);
  args.n = n;
  args.w = on.product(w);
  args.compute_type = compute_type;
  args.activation = activation;
  args.add = add;
  args.n_expanded = n_expanded;
  if (bias) args.bias = on.adopt(*bias);
  args.out = on.up(normals(static_cast<size_t>(n * w.view.rows), 77));
  backend.linear(args);
  return on.down(args.out, n * w.view.rows);
}

const char* name_of(quant::Type type) { return quant::format_of(type).name; }

}  // namespace

TEST_CASE("streamed products with every quantized format are the CPU's") {
  for (const quant::Type type : kQuantized)
    for (const int64_t n : {1, 5}) {
      CAPTURE(name_of(type));
      CAPTURE(n);
      const HostMatrix w(type, 9, 512, 3);
      const std::vector<float> x = normals(static_cast<size_t>(n * 512), 4);
      const auto run = [&](Backend& backend) {
        return linear_on(backend, w, x, ComputeType::by_weights, nullptr, Activation::none, false, 0);
      };
      CHECK(on_both(run).error() <= kFloatOrder);
    }
}

// Several tiles of the GEMM with ends that fill none, a k that fills no step, and rows of both forms.
TEST_CASE("products of many rows through tensor cores are the CPU's, with every quantized format") {
  struct Case {
    quant::Type type;
    int64_t rows, cols, n, n_expanded;
  };
  std::vector<Case> cases = {{quant::Type::Q8_0, 133, 96, 67, 67}, {quant::Type::Q8_0, 20, 32, 9, 5}};
  for (const quant::Type type : kQuantized) cases.push_back({type, 20, 256, 9, kAllRows});
  for (const Case& c : cases) {
    CAPTURE(name_of(c.type));
    CAPTURE(c.rows);
    const HostMatrix w(c.type, c.rows, c.cols, 3);
    const std::vector<float> x = normals(static_cast<size_t>(c.n * c.cols), 4);
    const auto run = [&](Backend& backend) {
      return linear_on(backend, w, x, ComputeType::by_weights, nullptr, Activation::none, false, c.n_expanded);
    };
    CHECK(on_both(run).error() <= kFloatOrder);
  }
}

TEST_CASE("products with floats, and with decoded weights, are the CPU's") {
  std::vector<quant::Type> types(kFloats, kFloats + 3);
  types.insert(types.end(), kQuantized.begin(), kQuantized.end());
  for (const quant::Type type : types) {
    CAPTURE(name_of(type));
    const HostMatrix w(type, 6, 256, 5);
    const std::vector<float> x = normals(3 * 256, 6);
    CHECK(on_both([&](Backend& backend) { return linear_on(backend, w, x, ComputeType::f32); }).error() <= kFloatOrder);
  }
  const HostMatrix odd(quant::Type::F16, 5, 37, 7);
  const std::vector<float> x = normals(2 * 37, 8);
  CHECK(on_both([&](Backend& backend) { return linear_on(backend, odd, x, ComputeType::by_weights); }).error() <= kFloatOrder);
}

TEST_CASE("products in bf16 are near the CPU's, in small tiles and large ones") {
  for (const quant::Type type : {quant::Type::F16, quant::Type::Q8_0}) {
    CAPTURE(name_of(type));
    const HostMatrix w(type, 40, 96, 9);
    for (const int64_t n : {3, 70}) {
      const std::vector<float> x = normals(static_cast<size_t>(n * 96), 10);
      const auto both = on_both([&](Backend& backend) { return linear_on(backend, w, x, ComputeType::bf16); });
      CHECK(both.error() <= kBf16);
    }
  }
}

TEST_CASE("bias, activation and addition come after the product") {
  const HostMatrix w(quant::Type::Q8_0, 33, 64, 11);
  const std::vector<float> x = normals(3 * 64, 12), bias = normals(33, 13);
  for (const Activation activation : {Activation::none, Activation::gelu_tanh, Activation::gelu_erf})
    for (const bool add : {false, true})
      CHECK(on_both([&](Backend& backend) {
              return linear_on(backend, w, x, ComputeType::by_weights, &bias, activation, add);
            }).error() <= kFloatOrder);
}

TEST_CASE("the bits of a row depend on its form, and not on the rows beside it") {
  for (const quant::Type type : {quant::Type::Q4_K, quant::Type::Q6_K, quant::Type::F16}) {
    const HostMatrix w(type, 7, 256, 14);
    const std::vector<float> x = normals(7 * 256, 15);
    const auto backend = emulated();
    const auto product = [&](const std::vector<float>& rows, int64_t n_expanded) {
      return linear_on(*backend, w, rows, ComputeType::by_weights, nullptr, Activation::none, false, n_expanded);
    };
    const std::vector<float> all = product(x, 4);
    for (int64_t row = 0; row < 7; ++row) {
      const std::vector<float> one(x.begin() + row * 256, x.begin() + (row + 1) * 256);
      CHECK(same_bits(product(one, row < 4 ? 1 : 0), std::vector<float>(all.begin() + row * 7, all.begin() + (row + 1) * 7)));
    }
  }
}

TEST_CASE("results that leave for the host are those of the product") {
  const HostMatrix w(quant::Type::Q5_K, 10, 256, 16);
  const std::vector<float> x = normals(70 * 256, 17);
  const auto to_host = [&](Backend& backend) {
    On on(backend);
    std::vector<float> out(70 * 10);
    LinearArgs args{};
    args.x = on.up(x);
    args.n = 70;
    args.w = on.product(w);
    args.out = out.data();
    backend.linear_to_host(args);
    return out;
  };
  const auto backend = emulated();
  CHECK(same_bits(to_host(*backend), linear_on(*backend, w, x, ComputeType::by_weights)));
}

TEST_CASE("norms are the CPU's") {
  const std::vector<float> x = normals(5 * 70, 20, 3.0f), weight = normals(70, 21), bias = normals(70, 22);
  const auto rms = [&](Backend& backend) {
    On on(backend);
    float* out = on.up(x);
    backend.rms_norm(out, on.adopt(weight), 1e-5f, 5, 70, out);
    return on.down(out, 5 * 70);
  };
  const auto layer = [&](Backend& backend) {
    On on(backend);
    float* out = on.up(x);
    backend.layer_norm(out, on.adopt(weight), on.adopt(bias), 1e-5f, 5, 70, out);
    backend.add(on.up(x), 5 * 70, out);
    return on.down(out, 5 * 70);
  };
  CHECK(on_both(rms).error() <= kFloatOrder);
  CHECK(on_both(layer).error() <= kFloatOrder);
}

TEST_CASE("patches are cut and merged as on the CPU") {
  std::vector<uint8_t> pixels(28 * 56 * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 31);
  const float mean[3] = {0.5f, 0.4f, 0.3f}, deviation[3] = {0.25f, 0.5f, 0.2f};
  const auto run = [&](Backend& backend) {
    On on(backend);
    float *cut = on.room(8 * 588), *merged = on.room(8 * 588);
    backend.patches({pixels.data(), 28, 56, 14, mean, deviation, cut});
    backend.merge_rows({cut, 2, 4, 2, 588, merged});
    return on.down(merged, 8 * 588);
  };
  const Both both = on_both(run);
  CHECK(same_bits(both.cpu, both.cuda));
}

TEST_CASE("feed-forward networks are the CPU's: dense, routed, with shared experts, by either score") {
  struct Case {
    quant::Type gate, down;
    int64_t n, n_expanded;
    bool sigmoid;
  };
  for (const Case& c :
       {Case{quant::Type::Q4_K, quant::Type::Q6_K, 1, 0, true}, Case{quant::Type::Q8_0, quant::Type::Q5_0, 9, 6, true},
        Case{quant::Type::Q4_K, quant::Type::F16, 9, kAllRows, true}, Case{quant::Type::F16, quant::Type::F16, 9, 0, false}}) {
    const int64_t hidden = 256, inner = 256, n_experts = 4, n = c.n;
    const bool sigmoid = c.sigmoid;
    const HostMatrix router(quant::Type::F32, n_experts, hidden, 30), gate(c.gate, inner, hidden, 31, n_experts),
        up(c.gate, inner, hidden, 32, n_experts), down(c.down, hidden, inner, 33, n_experts),
        shared_gate(c.gate, inner, hidden, 34), shared_up(c.gate, inner, hidden, 35), shared_down(c.down, hidden, inner, 36);
    const std::vector<float> x = normals(static_cast<size_t>(n * hidden), 37), bias = normals(n_experts, 38, 0.1f);
    const auto run = [&](Backend& backend) {
      On on(backend);
      MoeArgs args{};
      args.x = on.up(x);
      args.n = n;
      args.router = on.product(router);
      args.selection_bias = sigmoid ? on.adopt(bias) : nullptr;
      args.sigmoid = sigmoid;
      args.num_experts_per_tok = 2;
      args.norm_topk_prob = sigmoid;
      args.routed_scaling_factor = 2.5f;
      args.routed = {on.product(gate), on.product(up), on.product(down)};
      if (sigmoid) args.shared = {on.product(shared_gate), on.product(shared_up), on.product(shared_down)};
      args.out = on.up(x);
      args.n_expanded = c.n_expanded;
      backend.moe_ffn(args);
      backend.ffn({args.x, n, {on.product(shared_gate), on.product(shared_up), on.product(shared_down)}, args.out, c.n_expanded});
      return on.down(args.out, n * hidden);
    };
    CAPTURE(name_of(c.gate));
    CAPTURE(n);
    CAPTURE(sigmoid);
    // The inner activations differ by the order of sums, and where that moves one across a rounding of int8, by 1 / 127.
    CHECK(on_both(run).error() <= (c.gate == quant::Type::F16 ? 4 * kFloatOrder : 2e-3));
  }
}

namespace {

struct AttentionCase {
  KvType cache;
  quant::Type weights;
  int64_t n_past, n;
  bool wanted_only;
};

// Two sessions in a batch over pages: one with rows before it, one that begins.
std::vector<float> attend_on(Backend& backend, const AttentionCase& c) {
  On on(backend);
  const int64_t heads = 3, nope = 32, rope = 16, v_head = 32, rank = 64, hidden = 64, width = rank + rope;
  const KvPageLayout layout{c.cache, 2, KvRow(c.cache, rank, rope).bytes};
  const HostMatrix q(c.weights, heads * (nope + rope), hidden, 40), kv_a(c.weights, width, hidden, 41),
      k_b(c.weights, rank, nope, 42, heads), v_b(c.weights, v_head, rank, 43, heads), o(c.weights, hidden, heads * v_head, 44);
  const std::vector<float> norm = normals(static_cast<size_t>(rank), 45);
  std::vector<float> inv_freq(static_cast<size_t>(rope / 2));
  for (size_t j = 0; j < inv_freq.size(); ++j)
    inv_freq[j] = std::pow(50000.0f, -2.0f * static_cast<float>(j) / static_cast<float>(rope));
  std::vector<Buffer> memory;
  std::vector<uint8_t*> pages[2];
  for (auto& table : pages)
    for (int64_t first = 0; first < c.n_past + c.n; first += kPagePositions) {
      memory.push_back(backend.allocate(static_cast<size_t>(layout.bytes())));
      table.push_back(memory.back().data());
    }
  MlaArgs args{};
  args.layer = 1;
  args.num_heads = heads;
  args.qk_nope_head_dim = nope;
  args.qk_rope_head_dim = rope;
  args.v_head_dim = v_head;
  args.kv_lora_rank = rank;
  args.q = on.product(q);
  args.kv_a = on.product(kv_a);
  args.kv_a_norm = on.adopt(norm);
  args.kv_a_norm_eps = 1e-6f;
  args.k_b = on.product(k_b);
  args.v_b = on.product(v_b);
  args.o = on.product(o);
  args.scale = 0.2f;
  args.rope_inv_freq = on.adopt(inv_freq);
  args.rope_mscale = 1.0f;
  const auto step_of = [&](int64_t first, int64_t n, int64_t n_other, int64_t n_wanted) {
    auto step = backend.new_step();
    std::vector<int32_t> positions, others;
    for (int64_t i = 0; i < n; ++i) positions.push_back(static_cast<int32_t>(first + i));
    for (int64_t i = 0; i < n_other; ++i) others.push_back(static_cast<int32_t>(i));
    step->add_slice(RowForm::absorbed, {pages[0].data(), layout}, positions, n_wanted);
    if (n_other) step->add_slice(RowForm::absorbed, {pages[1].data(), layout}, others, std::min(n_wanted, n_other));
    return step;
  };
  const auto run = [&](const Step& step, unsigned seed, bool wanted_only) {
    const int64_t n_out = wanted_only ? step.n_wanted() : step.n_rows();
    args.x = on.up(normals(static_cast<size_t>(step.n_rows() * hidden), seed));
    args.step = &step;
    args.wanted_only = wanted_only;
    args.out = on.up(normals(static_cast<size_t>(n_out * hidden), 47));
    backend.run_step(step, {}, [&] { backend.mla_attention(args); });
    return on.down(args.out, n_out * hidden);
  };
  if (c.n_past) run(*step_of(0, c.n_past, 0, 0), 46, true);
  return run(*step_of(c.n_past, c.n, 5, 2), 48, c.wanted_only);
}

}  // namespace

TEST_CASE("attention over pages is the CPU's, for every kind of cache") {
  for (const AttentionCase& c : {
           AttentionCase{KvType::f32, quant::Type::F32, 0, 7, false},
           AttentionCase{KvType::f32, quant::Type::F32, 133, 1, false},
           AttentionCase{KvType::f16, quant::Type::F16, 70, 3, true},
           AttentionCase{KvType::q8_0, quant::Type::F32, 20, 3, false},
           AttentionCase{KvType::f16, quant::Type::Q8_0, 30, 2, true},
       }) {
    CAPTURE(static_cast<int>(c.cache));
    CAPTURE(name_of(c.weights));
    CAPTURE(c.n_past);
    // q8_0: the CPU multiplies bytes with queries that it rounds to int8. Q8_0 weights: roundings of activations differ.
    const double bar = c.cache == KvType::q8_0 || c.weights == quant::Type::Q8_0 ? 1e-2 : c.cache == KvType::f16 ? 1e-3 : 1e-5;
    CHECK(on_both([&](Backend& backend) { return attend_on(backend, c); }).error() <= bar);
  }
}

TEST_CASE("attention of a picture is the CPU's") {
  struct Case {
    int64_t n, head_dim;
    ComputeType compute_type;
  };
  // Heads of 72 numbers in bf16 go through the tensor cores.
  for (const Case& c : {Case{21, 32, ComputeType::f32}, Case{21, 32, ComputeType::bf16}, Case{70, 72, ComputeType::bf16}}) {
    const int64_t n = c.n, heads = 2, hidden = heads * c.head_dim;
    const ComputeType compute_type = c.compute_type;
    const HostMatrix q(quant::Type::F16, hidden, hidden, 50), k(quant::Type::F16, hidden, hidden, 51),
        v(quant::Type::F16, hidden, hidden, 52), o(quant::Type::F16, hidden, hidden, 53);
    const std::vector<float> x = normals(static_cast<size_t>(n * hidden), 54), bias = normals(hidden, 55);
    std::vector<float> turns;
    for (int64_t i = 0; i < n * hidden / heads / 2; ++i) {
      turns.push_back(std::cos(static_cast<float>(i)));
      turns.push_back(std::sin(static_cast<float>(i)));
    }
    const auto run = [&](Backend& backend) {
      On on(backend);
      VitAttentionArgs args{};
      args.x = on.up(x);
      args.n = n;
      args.hidden = hidden;
      args.num_heads = heads;
      args.q = on.product(q);
      args.k = on.product(k);
      args.v = on.product(v);
      args.o = on.product(o);
      args.q_bias = args.k_bias = args.v_bias = args.o_bias = on.adopt(bias);
      args.cos_sin = on.adopt(turns);
      args.compute_type = compute_type;
      args.out = on.up(x);
      backend.vit_attention(args);
      return on.down(args.out, n * hidden);
    };
    CHECK(on_both(run).error() <= (compute_type == ComputeType::f32 ? 1e-5 : kBf16));
  }
}

TEST_CASE("planes hold what the file's decoder reads") {
  for (const quant::Type type : kQuantized) {
    CAPTURE(name_of(type));
    const HostMatrix w(type, 3, 512, 60);
    std::vector<float> want(3 * 512);
    for (int64_t row = 0; row < 3; ++row)
      quant::format_of(type).decode(w.view.data + row * w.view.row_bytes, &want[static_cast<size_t>(row * 512)], 512);
    // Products with unit vectors are the weights.
    std::vector<float> ones(512 * 512, 0.0f);
    for (size_t i = 0; i < 512; ++i) ones[i * 512 + i] = 1.0f;
    const auto backend = emulated();
    const std::vector<float> got = linear_on(*backend, w, ones, ComputeType::f32);
    bool same = true;
    for (size_t row = 0; row < 3; ++row)
      for (size_t i = 0; i < 512; ++i) same = same && got[i * 3 + row] == want[row * 512 + i];
    CHECK(same);
  }
}

TEST_CASE("formats without planes and options without meaning are refused by name") {
  const auto backend = emulated();
  const HostMatrix w(quant::Type::IQ2_XS, 1, 256, 70);
  const auto code_of = [](const auto& body) -> std::string {
    try {
      body();
    } catch (const Error& error) {
      return error.code();
    }
    return "none";
  };
  CHECK(code_of([&] { backend->prepare(w.view, Use::product); }) == "device.format");
  CHECK(code_of([] { cuda::CudaOptions::from({{"isa", "avx2"}}); }) == "device.option");
  CHECK(code_of([] { cuda::CudaOptions::from({{"n_threads", "many"}}); }) == "request.n_threads");
  CHECK(code_of([] { cuda::CudaOptions::from({{"activations", "int4"}}); }) == "request.activations");
}

TEST_CASE("every call of the runtime may fail: the error says so and nothing is kept") {
  const HostMatrix w(quant::Type::Q4_K, 5, 256, 80);
  const std::vector<float> x = normals(256, 81);
  bool failed = true;
  for (long call = 0; failed; ++call) {
    REQUIRE(call < 200);
    emu::options.fail_call = emu::runtime_calls() + call;
    failed = false;
    try {
      const auto backend = emulated();
      linear_on(*backend, w, x, ComputeType::by_weights);
    } catch (const Error& error) {
      failed = true;
      CHECK((error.code() == "device.failed" || error.code() == "memory.device" || error.code() == "device.none"));
    }
    emu::options = {};
    CHECK(emu::device_bytes() == 0);
    CHECK((failed || call > 10));  // all of a product's calls have failed once
  }
}
