// Engine and sessions from C++, so that they can run under ThreadSanitizer. KIMI_TINY_MODEL and KIMI_TINY_MMPROJ name the
// files of a tiny model (tests/sanitize.sh writes them); without them the cases fail.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/sampler.h"
#include "engine/session.h"

using namespace kimi;

namespace {

std::shared_ptr<Engine> open_tiny(int n_threads) {
  const char* path = std::getenv("KIMI_TINY_MODEL");
  const char* mmproj = std::getenv("KIMI_TINY_MMPROJ");
  if (!path || !mmproj)
    FAIL("KIMI_TINY_MODEL and KIMI_TINY_MMPROJ are not set: run tests/sanitize.sh, which writes a tiny model");
  EngineOptions options;
  options.mmproj = mmproj;
  options.backend_options["n_threads"] = std::to_string(n_threads);
  return std::make_shared<Engine>(path, options);
}

std::vector<float> run(const std::shared_ptr<Engine>& engine, int32_t seed, int64_t n, int64_t chunk) {
  Session session(engine, 256, std::nullopt);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>((seed + 7 * i) % static_cast<size_t>(engine->text().vocab_size));
  std::vector<Slice> slices = {{&session, {{ids.data(), nullptr, n}}, Logits::last, nullptr}};
  engine->step(slices, chunk, {}, nullptr);
  for (int i = 0; i < 3; ++i) {
    Sampler greedy({0, 0.0f});
    const int32_t token = greedy.sample(session.logits());
    std::vector<Slice> one = {{&session, {{&token, nullptr, 1}}, Logits::last, nullptr}};
    engine->step(one, 0, {}, nullptr);
  }
  return session.logits();
}

}  // namespace

TEST_CASE("one and several threads give the same bits") {
  const auto one = open_tiny(1), three = open_tiny(3);
  const std::vector<float> a = run(one, 5, 150, 0), b = run(three, 5, 150, 0);
  REQUIRE(a.size() == b.size());
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST_CASE("callers on several threads share one engine") {
  const auto engine = open_tiny(2);
  std::vector<std::vector<float>> expected, got(4);
  for (int i = 0; i < 4; ++i) expected.push_back(run(engine, i, 20 + 40 * i, 64));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&, i] { got[static_cast<size_t>(i)] = run(engine, i, 20 + 40 * i, 64); });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < 4; ++i) CHECK(std::memcmp(expected[i].data(), got[i].data(), got[i].size() * sizeof(float)) == 0);
}

TEST_CASE("a picture is encoded by several threads") {
  const auto one = open_tiny(1), three = open_tiny(3);
  REQUIRE(one->vision());
  const int64_t height = 84, width = 140, n = height / 28 * (width / 28);
  std::vector<uint8_t> pixels(static_cast<size_t>(height * width * 3));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 31 % 251);
  std::vector<float> a(static_cast<size_t>(n * one->vision()->text_hidden_size)), b(a.size());
  const Picture picture(*one->vision(), pixels.data(), height, width);
  one->encode_image(picture, kNoAdapter, {}, nullptr, a.data());
  three->encode_image(picture, kNoAdapter, {}, nullptr, b.data());
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
