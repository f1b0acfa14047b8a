// One layer of routed and shared experts of the model's size, through the backend: what a prompt costs once panels are
// unpacked from memory, tokens gathered and results added up. More weights than any last-level cache lie behind each call.
//
//   bench_moe [type=Q4_K] [down=TYPE] [tokens=512] [isa=auto] [threads=2] [calls=5] [shared=1]
//
// Without `type`, every quantized format. Prints the best and the median call, the processor time of the median call, the
// share of the int8 peak measured beside it, and a checksum of the results, the same for any number of threads.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_options.h"
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/peak.h"
#include "quant/encode.h"
#include "quant/format.h"
#include "settings.h"

using namespace kimi;

namespace {

constexpr int64_t kHidden = 2048, kInner = 1408, kShared = 2816, kExperts = 64, kChosen = 6;

struct Options {
  std::string type, down, isa = "auto";
  int64_t tokens = 512;
  int threads = 2, calls = 5;
  bool shared = true;
} options;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double processor_time() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// A stack of random matrices: some rows are encoded, the others repeat them.
struct Stack {
  std::vector<uint8_t> bytes;
  Matrix matrix;

  Stack(const quant::Format& format, int64_t rows, int64_t cols, int64_t count, float size) {
    constexpr int64_t kEncoded = 67;
    const int64_t row_bytes = format.row_bytes(cols);
    bytes.resize(static_cast<size_t>(row_bytes * rows * count));
    std::mt19937 random(static_cast<unsigned>(rows + cols));
    std::normal_distribution<float> normal(0.0f, size);
    std::vector<float> row(static_cast<size_t>(cols));
    const quant::RowEncoder encode = quant::encoder_of(quant::select_encoders("auto"), format.type);
    for (int64_t r = 0; r < rows * count; ++r) {
      uint8_t* to = bytes.data() + r * row_bytes;
      if (r < kEncoded) {
        for (float& v : row) v = normal(random);
        encode(row.data(), nullptr, to, cols);
      } else {
        std::memcpy(to, to - kEncoded * row_bytes, static_cast<size_t>(row_bytes));
      }
    }
    matrix = {format.type, bytes.data(), rows, cols, row_bytes, count, row_bytes * rows};
  }
};

const quant::Format* format_named(const std::string& name) {
  if (const quant::Format* format = quant::find_format(std::string_view(name))) return format;
  std::fprintf(stderr, "no format is named %s\n", name.c_str());
  std::exit(2);
}

void run(Backend& backend, const quant::Format& wide, const quant::Format& narrow, double peak) {
  const float size = 0.03f;
  const Stack router(*format_named("F32"), kExperts, kHidden, 1, size);
  const Stack gate(wide, kInner, kHidden, kExperts, size), up(wide, kInner, kHidden, kExperts, size),
      down(narrow, kHidden, kInner, kExperts, size);
  const Stack shared_gate(wide, kShared, kHidden, 1, size), shared_up(wide, kShared, kHidden, 1, size),
      shared_down(wide, kHidden, kShared, 1, size);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(options.tokens * kHidden)), out(x.size());
  for (float& v : x) v = normal(random);
  MoeArgs args{};
  args.x = x.data();
  args.n = options.tokens;
  args.router = router.matrix;
  // Rows of the router repeat too; a little bias for each keeps the choice unambiguous and the experts' shares uneven.
  std::vector<float> bias(kExperts);
  for (int64_t e = 0; e < kExperts; ++e) bias[static_cast<size_t>(e)] = 0.002f * static_cast<float>(e % 16);
  args.selection_bias = bias.data();
  args.sigmoid = true;
  args.num_experts_per_tok = kChosen;
  args.norm_topk_prob = true;
  args.routed_scaling_factor = 2.446f;
  args.routed = {gate.matrix, up.matrix, down.matrix};
  if (options.shared) args.shared = {shared_gate.matrix, shared_up.matrix, shared_down.matrix};
  args.out = out.data();
  args.n_expanded = kAllRows;
  const double ops =
      2.0 * static_cast<double>(options.tokens * 3 * kHidden * (kChosen * kInner + (options.shared ? kShared : 0)));
  std::vector<double> wall, used;
  uint64_t checksum = 0;
  for (int i = 0; i < options.calls + 1; ++i) {
    std::fill(out.begin(), out.end(), 0.0f);
    const double start = now(), used_before = processor_time();
    backend.moe_ffn(args);
    if (i == 0) {
      for (const float v : out) {
        uint32_t bits;
        std::memcpy(&bits, &v, 4);
        checksum = (checksum ^ bits) * 1099511628211u;
      }
      continue;
    }
    wall.push_back(now() - start);
    used.push_back(processor_time() - used_before);
  }
  std::sort(wall.begin(), wall.end());
  std::sort(used.begin(), used.end());
  const double median = wall[wall.size() / 2], cpu = used[used.size() / 2];
  std::printf("%-11s %-6s down %-6s n=%-5ld %7.2f ms (best %.2f)  cpu %7.2f ms  %5.0f GOPS a core", backend.name(), wide.name,
              narrow.name, static_cast<long>(options.tokens), median * 1e3, wall[0] * 1e3, cpu * 1e3, ops / cpu / 1e9);
  if (peak > 0) std::printf(" = %2.0f%% of %.0f", 100 * ops / cpu / 1e9 / peak, peak);
  std::printf("  bits %016llx\n", static_cast<unsigned long long>(checksum));
}

}  // namespace

int main(int argc, char** argv) {
  const bench::Settings settings = {
      {"type", &options.type},       {"down", &options.down},   {"isa", &options.isa},       {"tokens", &options.tokens},
      {"threads", &options.threads}, {"calls", &options.calls}, {"shared", &options.shared},
  };
  if (!bench::read_settings(argc, argv, settings)) return 2;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  CpuOptions cpu;
  cpu.n_threads = options.threads;
  cpu.isa = options.isa;
  const std::unique_ptr<Backend> backend = make_cpu_backend(cpu);
  const cpu::PeakLoop loop = cpu::peaks(options.isa.c_str()).int8;
  double peak = 0;
  for (int i = 0; loop.run && i < 50; ++i) {
    const double start = now();
    loop.run();
    peak = std::max(peak, loop.ops / (now() - start) / 1e9);
  }
  for (const quant::Format& format : quant::formats()) {
    if (format.is_float() || !quant::has_encoder(format.type) || (!options.type.empty() && options.type != format.name)) continue;
    // Rows of 1408 are no multiple of 256: such formats leave the routed down projection to another.
    const char* narrow = format.block_elems == 32                  ? format.name
                         : std::strcmp(format.name, "Q4_K") == 0   ? "Q5_0"
                         : std::strcmp(format.name, "Q5_K") == 0   ? "Q5_1"
                         : std::strcmp(format.name, "Q6_K") == 0   ? "Q8_0"
                         : std::strcmp(format.name, "IQ4_XS") == 0 ? "IQ4_NL"
                                                                   : "Q4_0";
    run(*backend, format, *format_named(options.down.empty() ? narrow : options.down), peak);
  }
  return 0;
}
