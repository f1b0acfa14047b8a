// The sample kernels through the emulator against plain loops, under several orders of threads, and the same kernels with
// mistakes planted in them: what the emulator says of each is written down here.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/kernels/attention_72.h"
#include "backend/cuda/kernels/gemm_bf16.h"
#include "cuda_emulator/samples/gemv_q4_k.h"

using namespace kimi::cuda;

namespace {

std::mt19937_64 engine(7);
float normal() { return std::normal_distribution<float>()(engine); }
uint16_t bf16(float x) { return static_cast<uint16_t>(pack_bf16(x, 0) & 0xffff); }

// Also runs in children, which no test framework watches.
#define CHECK_CUDA(call)                                    \
  if (const cudaError_t error = call; error != cudaSuccess) \
  std::printf("%s: %s\n", #call, cudaGetErrorString(error)), std::_Exit(2)

template <typename T>
struct Device {
  T* p = nullptr;
  size_t n;
  explicit Device(size_t count) : n(count) { CHECK_CUDA(cudaMalloc(reinterpret_cast<void**>(&p), n * sizeof(T))); }
  ~Device() { static_cast<void>(cudaFree(p)); }
  void from(const std::vector<T>& host, cudaStream_t stream) {
    CHECK_CUDA(cudaMemcpyAsync(p, host.data(), n * sizeof(T), cudaMemcpyHostToDevice, stream));
  }
  std::vector<T> to_host(cudaStream_t stream) {
    std::vector<T> host(n);
    CHECK_CUDA(cudaMemcpyAsync(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    return host;
  }
};

// || got - want || / || want ||; not a number counts as wrong
double error_of(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    if (!(d == d)) return 1e30;
    difference += d * d;
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

// ---- Q4_K -------------------------------------------------------------------------------------------------------------
template <int n, int kMistake>
double run_gemv(int n_rows, int k, cudaStream_t stream) {
  const int row_bytes = k / 256 * 144;
  std::vector<uint8_t> w(static_cast<size_t>(n_rows * row_bytes));
  for (auto& byte : w) byte = static_cast<uint8_t>(engine());
  const auto half = [](float x) {  // positive, normal
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits >> 13) - (112 << 10));
  };
  for (size_t b = 0; b < w.size(); b += 144) {
    const uint16_t d[2] = {half(0.01f + 0.0001f * static_cast<float>(engine() % 100)), half(0.005f)};
    std::memcpy(&w[b], d, 4);
  }
  std::vector<int8_t> q(static_cast<size_t>(n * k));
  std::vector<float> scale(static_cast<size_t>(n * k / 32)), half_sum(static_cast<size_t>(n * k / 16));
  for (auto& value : q) value = static_cast<int8_t>(engine() % 255 - 127);
  for (auto& s : scale) s = 0.01f * std::fabs(normal());
  for (size_t i = 0; i < half_sum.size(); ++i) {
    int sum = 0;
    for (size_t j = 0; j < 16; ++j) sum += q[i * 16 + j];
    half_sum[i] = scale[i / 2] * static_cast<float>(sum);
  }
  // By the format's description alone.
  std::vector<double> want(static_cast<size_t>(n * n_rows));
  for (int r = 0; r < n_rows; ++r)
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int i = 0; i < k; ++i) {
        const uint8_t* block = &w[static_cast<size_t>(r * row_bytes + i / 256 * 144)];
        const int e = i % 256, sub = e / 32;
        uint16_t d[2];
        std::memcpy(d, block, 4);
        const uint8_t *s = block + 4, *quants = block + 16 + e / 64 * 32 + e % 32;
        const int sc = sub < 4 ? s[sub] & 63 : (s[sub + 4] & 15) | (s[sub - 4] >> 6 << 4);
        const int mn = sub < 4 ? s[sub + 4] & 63 : (s[sub + 4] >> 4) | (s[sub] >> 6 << 4);
        const int nibble = e % 64 < 32 ? *quants & 15 : *quants >> 4;
        const double value =
            static_cast<double>(float_from_f16(d[0])) * sc * nibble - static_cast<double>(float_from_f16(d[1])) * mn;
        sum += value * static_cast<double>(scale[static_cast<size_t>((j * k + i) / 32)]) * q[static_cast<size_t>(j * k + i)];
      }
      want[static_cast<size_t>(j * n_rows + r)] = sum;
    }
  Device<uint8_t> dw(w.size());
  Device<int8_t> dq(q.size());
  Device<float> ds(scale.size()), dh(half_sum.size()), out(want.size());
  dw.from(w, stream);
  dq.from(q, stream);
  ds.from(scale, stream);
  dh.from(half_sum, stream);
  CHECK_CUDA(cudaStreamSynchronize(stream));
  emu::mark_weights(dw.p);
  constexpr int kRows = 2, kWarps = 4;
  Launch how;
  how.grid = dim3(static_cast<unsigned>((n_rows + kRows * kWarps - 1) / (kRows * kWarps)) * (kMistake == 4 ? 2 : 1));
  how.block = dim3(kWarps * kWarp);
  how.stream = stream;
  how.dependent = true;
  CHECK_CUDA(
      launch("gemv_q4_k", gemv_q4_k<kRows, n, kMistake>, how, GemvArgs{dw.p, row_bytes, n_rows, k, {dq.p, ds.p, dh.p}, out.p}));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  return error_of(out.to_host(stream), want);
}

// ---- bf16 GEMM ----------------------------------------------------------------------------------------------------------
template <int kBM, int kBN, int kBK, int kStages, int kWarpsM, int kWarpsN, int kMistake>
double run_gemm(int m, int n, int k, cudaStream_t stream) {
  std::vector<uint16_t> x(static_cast<size_t>(m * k)), w(static_cast<size_t>(n * k));
  std::vector<float> bias(static_cast<size_t>(n));
  for (auto& v : x) v = bf16(normal());
  for (auto& v : w) v = bf16(normal());
  for (auto& v : bias) v = normal();
  std::vector<double> want(static_cast<size_t>(m * n));
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int l = 0; l < k; ++l)
        sum += float_from_bf16(x[static_cast<size_t>(i * k + l)]) * float_from_bf16(w[static_cast<size_t>(j * k + l)]);
      want[static_cast<size_t>(i * n + j)] = static_cast<double>(sum + bias[static_cast<size_t>(j)]);
    }
  Device<uint16_t> dx(x.size()), dw(w.size());
  Device<float> db(bias.size()), out(want.size());
  dx.from(x, stream);
  dw.from(w, stream);
  db.from(bias, stream);
  CHECK_CUDA(cudaStreamSynchronize(stream));
  Launch how;
  how.grid = dim3(static_cast<unsigned>((n + kBN - 1) / kBN), static_cast<unsigned>((m + kBM - 1) / kBM));
  how.block = dim3(kWarpsM * kWarpsN * kWarp);
  how.shared = sizeof(GemmShared<kBM, kBN, kBK, kStages>);
  how.stream = stream;
  CHECK_CUDA(launch("gemm_bf16", gemm_bf16<kBM, kBN, kBK, kStages, kWarpsM, kWarpsN, kMistake>, how,
                    GemmArgs{dx.p, dw.p, db.p, out.p, m, n, k}));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  return error_of(out.to_host(stream), want);
}

// ---- attention -------------------------------------------------------------------------------------------------------------
template <int kWarps, int kMistake>
double run_attention(int n, int heads, cudaStream_t stream) {
  const size_t size = static_cast<size_t>(heads * n * kHead);
  std::vector<uint16_t> q(size), k(size), v(size);
  for (auto* array : {&q, &k, &v})
    for (auto& value : *array) value = bf16(normal());
  std::vector<double> want(size);
  const double scale = 1 / std::sqrt(72.0);
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < n; ++i) {
      std::vector<double> p(static_cast<size_t>(n));
      double top = -1e30, total = 0;
      const auto at = [&](const std::vector<uint16_t>& a, int row, int d) {
        return static_cast<double>(float_from_bf16(a[static_cast<size_t>((h * n + row) * kHead + d)]));
      };
      for (int j = 0; j < n; ++j) {
        double s = 0;
        for (int d = 0; d < kHead; ++d) s += at(q, i, d) * at(k, j, d);
        p[static_cast<size_t>(j)] = s * scale;
        top = std::max(top, s * scale);
      }
      for (auto& e : p) total += e = std::exp(e - top);
      for (int j = 0; j < n; ++j)
        for (int d = 0; d < kHead; ++d)
          want[static_cast<size_t>((i * heads + h) * kHead + d)] += p[static_cast<size_t>(j)] / total * at(v, j, d);
    }
  Device<uint16_t> dq(size), dk(size), dv(size);
  Device<float> out(size);
  dq.from(q, stream);
  dk.from(k, stream);
  dv.from(v, stream);
  CHECK_CUDA(cudaStreamSynchronize(stream));
  Launch how;
  how.grid = dim3(static_cast<unsigned>((n + kWarps * 16 - 1) / (kWarps * 16)), static_cast<unsigned>(heads));
  how.block = dim3(kWarps * kWarp);
  how.shared = sizeof(HeadsOf72Shared<kWarps>);
  how.stream = stream;
  CHECK_CUDA(launch("attention", attend_heads_of_72<kWarps, kMistake>, how,
                    HeadsOf72Args{dq.p, dk.p, dv.p, out.p, n, heads, static_cast<float>(scale * 1.4426950408889634)}));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  return error_of(out.to_host(stream), want);
}

constexpr double kGemvBar = 1e-6, kGemmBar = 2e-6, kAttentionBar = 6e-3;  // float sums; bf16 probabilities and results

// What a run of a kernel with one mistake ends in.
enum class End { right, wrong, reported };
const char* text_of(End end) { return end == End::right ? "right" : end == End::wrong ? "wrong results" : "reported"; }

constexpr int kReported = 3;  // the exit status of emu::fail

template <typename Run>
End end_of(const Run& run, double bar, emu::Order order) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    emu::options.order = order;
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::_Exit(run(stream) <= bar ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  REQUIRE((WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 1 || WEXITSTATUS(status) == kReported));
  return WEXITSTATUS(status) == 0 ? End::right : WEXITSTATUS(status) == 1 ? End::wrong : End::reported;
}

// Sizes with ends that do not fill a tile, and a k of several stages.
template <int kMistake>
double small_gemm(cudaStream_t stream) {
  return run_gemm<32, 32, 32, 3, 1, 2, kMistake>(40, 37, 168, stream);
}
template <int kMistake>
double small_attention(cudaStream_t stream) {
  return run_attention<2, kMistake>(150, 2, stream);
}
template <int kMistake>
double small_gemv(cudaStream_t stream) {
  return run_gemv<1, kMistake>(19, 768, stream);
}

struct Mistake {
  const char* what;
  double (*run)(cudaStream_t);
  double bar;
  End fast, checked;  // what every order has to end in
};
const Mistake kMistakes[] = {
    {"gemm: none", small_gemm<0>, kGemmBar, End::right, End::right},
    {"gemm: no barrier before a stage is read", small_gemm<1>, kGemmBar, End::wrong, End::reported},
    {"gemm: no barrier before a stage is filled again", small_gemm<2>, kGemmBar, End::wrong, End::reported},
    {"gemm: one copy too many is left under way", small_gemm<3>, kGemmBar, End::wrong, End::reported},
    {"gemm: rows past the end are read", small_gemm<4>, kGemmBar, End::reported, End::reported},
    {"gemm: no swizzle, which is slow and right", small_gemm<5>, kGemmBar, End::right, End::right},
    {"gemm: half of the warps skip a barrier", small_gemm<6>, kGemmBar, End::wrong, End::reported},
    {"attention: none", small_attention<0>, kAttentionBar, End::right, End::right},
    {"attention: no barrier before a tile is overwritten", small_attention<1>, kAttentionBar, End::wrong, End::reported},
    {"attention: keys past the end are not masked", small_attention<2>, kAttentionBar, End::wrong, End::wrong},
    {"attention: the maximum of half of the lanes", small_attention<3>, kAttentionBar, End::wrong, End::wrong},
    {"attention: padding is never written", small_attention<4>, kAttentionBar, End::wrong, End::reported},
    {"gemv: none", small_gemv<0>, kGemvBar, End::right, End::right},
    {"gemv: a row past the end is written", small_gemv<1>, kGemvBar, End::reported, End::reported},
    {"gemv: lanes leave before an exchange", small_gemv<2>, kGemvBar, End::reported, End::reported},
    {"gemv: a header is read 4 bytes late", small_gemv<3>, kGemvBar, End::wrong, End::reported},
    {"gemv: two blocks write the same rows", small_gemv<4>, kGemvBar, End::right, End::reported},
};
constexpr emu::Order kOrders[] = {emu::Order::forward, emu::Order::backward, emu::Order::random};

}  // namespace

TEST_CASE("the sample kernels are right under every order of threads") {
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (const emu::Order order : kOrders) {
    emu::options.order = order;
    CHECK(run_gemv<1, 0>(19, 768, stream) <= kGemvBar);
    CHECK(run_gemv<4, 0>(33, 1024, stream) <= kGemvBar);
    CHECK(run_gemm<128, 64, 32, 4, 2, 2, 0>(150, 100, 200, stream) <= kGemmBar);
    CHECK(run_attention<4, 0>(150, 2, stream) <= kAttentionBar);
  }
  emu::options = {};
  CHECK_CUDA(cudaStreamDestroy(stream));
}

TEST_CASE("every planted mistake ends as it should under every order of threads") {
  for (const Mistake& mistake : kMistakes)
    for (const emu::Order order : kOrders) {
      const End expected = emu::checked_build() ? mistake.checked : mistake.fast, found = end_of(mistake.run, mistake.bar, order);
      CAPTURE(mistake.what);
      CAPTURE(static_cast<int>(order));
      CHECK(std::string(text_of(found)) == text_of(expected));
    }
}

TEST_CASE("the swizzle spreads matrices over the banks") {
  const auto cycles = [](double (*run)(cudaStream_t)) {
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    emu::counters = {};
    run(stream);
    CHECK_CUDA(cudaStreamDestroy(stream));
    return static_cast<double>(emu::counters.ldmatrix_phases) / static_cast<double>(emu::counters.ldmatrix_rows);
  };
  CHECK(cycles(small_gemm<0>) == 1.0);
  CHECK(cycles(small_gemm<5>) == 4.0);
  CHECK(cycles(small_attention<0>) == 1.0);
}

TEST_CASE("tensor cores that round towards zero give other sums, within the bar") {
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  emu::options.truncate_sums = true;
  CHECK(run_gemm<32, 32, 32, 3, 1, 2, 0>(40, 37, 168, stream) <= kGemmBar);
  emu::options = {};
  CHECK_CUDA(cudaStreamDestroy(stream));
}
