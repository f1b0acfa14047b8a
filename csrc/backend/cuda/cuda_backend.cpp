#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "backend/cuda/repack.h"
#include "base/cpu_count.h"
#include "base/error.h"

namespace kimi::cuda {
namespace {

constexpr int kMaxThreads = 1024;

int threads_from(const std::string& value) {
  int n = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
  KIMI_CHECK(error == std::errc() && end == value.data() + value.size() && n >= 0 && n <= kMaxThreads, ErrorKind::bad_request,
             "request.n_threads", "n_threads is \"%s\", expected 1 to %d, or 0 to choose by the processors at hand",
             value.c_str(), kMaxThreads);
  return n;
}

}  // namespace

CudaOptions CudaOptions::from(const BackendOptions& options) {
  check_options("cuda", options, {"activations", "n_threads"});
  CudaOptions found;
  if (const auto threads = options.find("n_threads"); threads != options.end()) found.n_threads = threads_from(threads->second);
  if (const auto activations = options.find("activations"); activations != options.end()) {
    const std::string& value = activations->second;
    KIMI_CHECK(value == "int8" || value == "float", ErrorKind::bad_request, "request.activations",
               "activations is \"%s\", expected int8 or float", value.c_str());
    found.float_activations = value == "float";
  }
  return found;
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) { return std::make_unique<CudaBackend>(options); }

CudaBackend::CudaBackend(const CudaOptions& options)
    : float_activations_(options.float_activations), pool_(options.n_threads > 0 ? options.n_threads : count_cpus().threads) {}

CudaBackend::~CudaBackend() = default;

Buffer CudaBackend::adopt(const float* host, int64_t n) {
  Buffer copied = allocate(static_cast<size_t>(n) * sizeof(float));
  upload(copied.floats(), host, n * static_cast<int64_t>(sizeof(float)));
  const Lock lock(device_.lock());
  adopted_[copied.floats()] = host;
  return copied;
}

// Rows of embeddings stay on the host: a token needs a few kilobytes of them.
Matrix CudaBackend::prepare(const Matrix& w, Use use) {
  if (use == Use::rows) return w;
  const bool floats = quant::format_of(w.type).is_float();
  KIMI_CHECK(floats || has_planes(w.type), ErrorKind::unsupported, "device.format",
             "the backend cuda cannot multiply with weights of type %s: use the device cpu, or another quantization",
             quant::format_of(w.type).name);
  const std::vector<int64_t> key = {reinterpret_cast<intptr_t>(w.data), static_cast<int64_t>(w.type), w.rows, w.cols, w.count};
  Matrix prepared = w;
  // The last row of floats may end where the file does.
  const int64_t bytes = floats ? (w.rows - 1) * w.row_bytes + quant::format_of(w.type).row_bytes(w.cols) : plane_bytes(w);
  prepared.stack_bytes = (bytes + 15) / 16 * 16;
  if (const auto found = prepared_.find(key); found != prepared_.end()) {
    prepared.data = found->second;
    return prepared;
  }
  const Buffer& memory = weights_.emplace_back(allocate(static_cast<size_t>(w.count * prepared.stack_bytes)));
  seal_weights(memory.data());
  for_each(w.count, [&](int64_t i) {
    const Matrix one = w.at(i);
    uint8_t* to = memory.data() + i * prepared.stack_bytes;
    if (floats) return device_.upload(to, one.data, static_cast<size_t>(bytes));
    std::vector<uint8_t> planes(static_cast<size_t>(bytes));
    repack(one, planes.data());
    device_.upload(to, planes.data(), planes.size());
  });
  prepared.data = memory.data();
  prepared_[key] = prepared.data;
  for (int64_t i = 0; i < w.count; ++i) origins_[prepared.at(i).data] = w.at(i).data;
  return prepared;
}

void CudaBackend::for_each(int64_t n, const std::function<void(int64_t)>& body) {
  pool_.parallel_for(n, [&](int64_t i, int) { body(i); });
}

// ---- what a step holds, on the device
// ------------------------------------------------------------------------------------------

void CudaBackend::run_step(const Step&, const StepKey&, const std::function<void()>& body) {
  struct Scope {
    StepValues& values;
    ~Scope() { values.kept = false; }
  } const scope{values_};
  values_.step = nullptr;
  values_.kept = true;
  body();
}

// Within run_step once.
void CudaBackend::upload_rows(const Step& step) {
  if (values_.kept && values_.step == &step) return;
  const auto n = static_cast<size_t>(step.n_rows());
  std::vector<int32_t> numbers(step.positions());  // positions [n], first_page [n], all [n], wanted [n_wanted]
  numbers.resize(3 * n + static_cast<size_t>(step.n_wanted()));
  std::vector<uint64_t> pages;
  for (const Step::Slice& slice : step.slices()) {
    const auto first_page = static_cast<int32_t>(pages.size());
    const int64_t last = step.positions()[static_cast<size_t>(slice.row0 + slice.n - 1)];
    for (int64_t page = 0; page <= last / kPagePositions; ++page)
      pages.push_back(reinterpret_cast<uint64_t>(slice.cache.pages[page]));
    for (int64_t i = 0; i < slice.n; ++i) {
      numbers[n + static_cast<size_t>(slice.row0 + i)] = first_page;
      numbers[2 * n + static_cast<size_t>(slice.row0 + i)] = static_cast<int32_t>(slice.row0 + i);
    }
    for (int64_t i = 0; i < slice.n_wanted; ++i)
      numbers[3 * n + static_cast<size_t>(slice.wanted0 + i)] = static_cast<int32_t>(slice.row0 + slice.n - slice.n_wanted + i);
  }
  const size_t page_bytes = pages.size() * sizeof(uint64_t), number_bytes = numbers.size() * sizeof(int32_t);
  std::vector<uint8_t> bytes(page_bytes + number_bytes);
  if (!pages.empty()) std::memcpy(bytes.data(), pages.data(), page_bytes);
  std::memcpy(bytes.data() + page_bytes, numbers.data(), number_bytes);
  auto* to = scratch<uint8_t>(&values_.memory, static_cast<int64_t>(bytes.size()));
  upload(to, bytes.data(), static_cast<int64_t>(bytes.size()));
  values_.pages = reinterpret_cast<const uint64_t*>(to);
  values_.positions = reinterpret_cast<const int*>(to + page_bytes);
  values_.first_page = values_.positions + n;
  values_.all = values_.positions + 2 * n;
  values_.wanted = values_.positions + 3 * n;
  values_.step = &step;
  values_.cos_sin = nullptr;
}

// Angles are computed in double: at position 100,000 a float angle would be off by 0.004.
void CudaBackend::upload_angles(const MlaArgs& args) {
  if (values_.cos_sin) return;
  const float* inv_freq = adopted_.at(args.rope_inv_freq);
  const int64_t pairs = args.qk_rope_head_dim / 2;
  std::vector<float> turns;
  turns.reserve(static_cast<size_t>(args.step->n_rows() * pairs * 2));
  for (const int32_t position : args.step->positions())
    for (int64_t j = 0; j < pairs; ++j) {
      const double angle = static_cast<double>(position) * static_cast<double>(inv_freq[j]);
      turns.push_back(static_cast<float>(std::cos(angle)) * args.rope_mscale);
      turns.push_back(static_cast<float>(std::sin(angle)) * args.rope_mscale);
    }
  auto* to = scratch<float>(&values_.turns, static_cast<int64_t>(turns.size()));
  upload(to, turns.data(), static_cast<int64_t>(turns.size() * sizeof(float)));
  values_.cos_sin = to;
}

}  // namespace kimi::cuda
