// The network over memory that it cannot touch. KIMI_TINY_MODEL and KIMI_TINY_MMPROJ as in engine/test_step.cpp.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "far_backend.h"
#include "model/decoder.h"
#include "model/kv_pages.h"
#include "model/moonvit.h"
#include "model/projector.h"

using namespace kimi;

namespace {

std::string path_of(const char* variable) {
  const char* path = std::getenv(variable);
  if (!path) FAIL("KIMI_TINY_MODEL and KIMI_TINY_MMPROJ are not set: run tests/sanitize.sh, which writes a tiny model");
  return path;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// What the network says, and what its cache holds.
struct Answer {
  std::vector<float> logits;
  std::vector<std::vector<uint8_t>> pages;
};

std::vector<uint8_t> rows_of(const Page& page) {
  std::vector<uint8_t> rows(static_cast<size_t>(page.pool()->layout().bytes_of(page.n_filled())));
  page.read(rows.data());
  return rows;
}

// Logits of a prompt of ids and embeddings, of which the first page is expanded; then of a token more, after the pages have left
// the backend and come back, and the last of them is shared, so that the token is written into a copy.
Answer run_text(const std::shared_ptr<Backend>& shared, KvType type, bool by_layers) {
  Backend& backend = *shared;
  const gguf::File file = gguf::File::open(path_of("KIMI_TINY_MODEL"));
  TextConfig config = read_text_config(file);
  WeightStore store;
  TextWeights weights = load_text_weights(file, &config, &store);
  place(backend, config, &weights);
  Decoder decoder(config, weights);
  const int64_t row = KvRow(type, config.kv_lora_rank, config.qk_rope_head_dim).bytes;
  const auto pool = PagePool::without_budget(shared, {type, config.num_hidden_layers, row}, 2);
  PageTable table(pool);
  table.reserve(0, 149);

  std::vector<int32_t> ids(149);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7 % static_cast<size_t>(config.vocab_size));
  std::vector<float> embeddings(static_cast<size_t>(10 * config.hidden_size));
  for (size_t i = 0; i < embeddings.size(); ++i) embeddings[i] = static_cast<float>(i % 13) / 13.0f - 0.5f;
  std::vector<float> logits(static_cast<size_t>(7 * config.vocab_size));
  const auto positions = [](int32_t first, int32_t n) {
    std::vector<int32_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), first);
    return all;
  };
  const auto at = [&](int64_t i) { return logits.data() + i * config.vocab_size; };
  DecoderPass pass;
  const auto finish = [&] {
    while (by_layers && !decoder.advance(backend, &pass)) continue;
    if (!by_layers) decoder.finish(backend, &pass);
  };
  pass.begin();
  pass.add({table.view(),
            RowForm::expanded,
            {{ids.data(), nullptr, 118}, {nullptr, embeddings.data(), 10}},
            positions(0, 128),
            {at(0), at(1), at(2), at(3), at(4)}});
  pass.add({table.view(), RowForm::absorbed, {{ids.data() + 118, nullptr, 21}}, positions(128, 21), {at(5)}});
  finish();
  table.wrote(0, 149);
  std::vector<PageRef> restored;
  for (const PageRef& page : table.pages()) {
    const std::vector<uint8_t> rows = rows_of(*page);
    restored.push_back(pool->page_from(rows.data(), static_cast<int64_t>(rows.size()), page->n_filled()));
  }
  table.share(restored);
  table.reserve(149, 1);
  CHECK(table.pages().back() != restored.back());
  pass.begin();
  pass.add({table.view(), RowForm::absorbed, {{ids.data(), nullptr, 1}}, positions(149, 1), {at(6)}});
  finish();
  table.wrote(149, 1);
  Answer answer{logits, {}};
  for (const PageRef& page : table.pages()) answer.pages.push_back(rows_of(*page));
  return answer;
}

std::vector<float> run_picture(Backend& backend) {
  const gguf::File file = gguf::File::open(path_of("KIMI_TINY_MODEL")), mmproj = gguf::File::open(path_of("KIMI_TINY_MMPROJ"));
  const VisionConfig config = read_vision_config(mmproj, read_text_config(file).hidden_size);
  WeightStore store;
  VisionWeights weights = load_vision_weights(mmproj, config, &store);
  place(backend, &weights);
  MoonVit vit(config, weights, ComputeType::f32);
  std::vector<uint8_t> values(static_cast<size_t>(56 * 84 * 3));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(i * 31);
  const Picture picture(config, values.data(), 56, 84);
  TowerPass pass;
  vit.begin(backend, picture, kNoAdapter, &pass);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) vit.advance(backend, &pass);
  const float* features = vit.finish(backend, &pass);
  std::vector<float> out(static_cast<size_t>(pass.n_patches() / 4 * config.text_hidden_size));
  Projector(config, weights, ComputeType::f32).run(backend, features, pass.grid_h(), pass.grid_w(), kNoAdapter, out.data());
  return out;
}

}  // namespace

TEST_CASE("the network gives the same bits over memory that it cannot touch, and gives it back") {
  const auto far = std::make_shared<FarBackend>();
  const std::shared_ptr<Backend> near = make_cpu_backend({});
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q8_0}) {
    const Answer want = run_text(near, type, false);
    REQUIRE(want.pages.size() == 2);
    for (const bool by_layers : {false, true}) {
      const Answer got = run_text(far, type, by_layers);
      CHECK(same_bits(got.logits, want.logits));
      CHECK(got.pages == want.pages);
    }
  }
  CHECK(same_bits(run_picture(*far), run_picture(*near)));
  CHECK(far->n_operations() > 50);
  CHECK(far->n_buffers() == 0);
}

// Sums of squares of inputs by weight, matrix of its stack and first column.
struct Sums final : InputObserver {
  void see(const ProductInput& input, int64_t first, int64_t n_cols) noexcept override {
    double sum = 0;
    for (int64_t i = 0; i < input.n; ++i)
      for (int64_t c = 0; c < n_cols; ++c) {
        const double x = input.x[(input.rows ? input.rows[i] : i) * input.stride + first + c];
        sum += x * x;
      }
    const std::lock_guard lock(mutex);
    of[{input.w->weight, input.w->index, first}] += sum;
  }
  std::mutex mutex;
  std::map<std::tuple<int32_t, int32_t, int64_t>, double> of;
};

TEST_CASE("an observer knows weights wherever they lie") {
  Sums far_sums, near_sums;
  const auto far = std::make_shared<FarBackend>();
  const std::shared_ptr<Backend> near = make_cpu_backend({});
  far->set_observer(&far_sums);
  near->set_observer(&near_sums);
  run_text(far, KvType::f32, false);
  run_text(near, KvType::f32, false);
  CHECK(far_sums.of.size() > 50);
  CHECK(far_sums.of == near_sums.of);
  CHECK(far_sums.of.count({-1, 0, 0}) == 0);  // in this file every matrix is a tensor of its own
}

TEST_CASE("memory of the far backend ends whoever follows a pointer into it") {
  FarBackend far;
  const Buffer buffer = far.allocate(64);
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    std::signal(SIGBUS, SIG_DFL);
    static_cast<void>(*static_cast<volatile float*>(buffer.floats()));
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK_FALSE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}
