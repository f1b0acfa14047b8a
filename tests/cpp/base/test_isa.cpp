// One list of instruction sets, one choice, one variable that forces it.
#include <doctest/doctest.h>

#include <cstdlib>
#include <set>
#include <string>

#include "base/isa.h"
#include "expect_error.h"

using namespace kimi;

namespace {

// KIMI_VL_CPU_ISA for the time of a test.
class Forced {
 public:
  explicit Forced(const char* value) {
    if (const char* old = std::getenv(kName)) old_ = old, was_set_ = true;
    value ? setenv(kName, value, 1) : unsetenv(kName);
  }
  ~Forced() { was_set_ ? setenv(kName, old_.c_str(), 1) : unsetenv(kName); }
  Forced(const Forced&) = delete;
  Forced& operator=(const Forced&) = delete;

 private:
  static constexpr const char* kName = "KIMI_VL_CPU_ISA";
  std::string old_;
  bool was_set_ = false;
};

}  // namespace

TEST_CASE("names and ids of instruction sets are unique, and generic is the last and always there") {
  std::set<std::string> names;
  std::set<IsaId> ids;
  for (const Isa& isa : isas()) names.insert(isa.name), ids.insert(isa.id);
  CHECK(names.size() == isas().size());
  CHECK(ids.size() == isas().size());
  CHECK(isas().size() <= static_cast<size_t>(kIsaCount));
  CHECK(isas().back().id == IsaId::generic);
  CHECK(isas().back().supported);
}

TEST_CASE("auto is the first one that the processor has") {
  const Forced none(nullptr);
  for (const char* automatic : {"auto", "", static_cast<const char*>(nullptr)}) {
    const Isa& chosen = choose_isa(automatic);
    CHECK(chosen.supported);
    for (const Isa& isa : isas()) {
      if (isa.id == chosen.id) break;
      CHECK(!isa.supported);
    }
  }
}

TEST_CASE("the variable is what auto means, and a name given outright wins over it") {
  const Forced generic("generic");
  CHECK(choose_isa("auto").id == IsaId::generic);
  for (const Isa& isa : isas())
    if (isa.supported) CHECK(choose_isa(isa.name).id == isa.id);
  const Forced automatic("auto");
  CHECK(choose_isa(nullptr).supported);
}

TEST_CASE("an unknown name is refused with those there are, and the variable is named as its source") {
  const Forced none(nullptr);
  const std::string unknown = expect_error(ErrorKind::bad_request, "cpu.isa", [] { choose_isa("sse9"); });
  CHECK(unknown.find("unknown instruction set \"sse9\", expected auto or one of ") == 0);
  for (const Isa& isa : isas()) CHECK(unknown.find(isa.name) != std::string::npos);
  const Forced wrong("sse9");
  CHECK(expect_error(ErrorKind::bad_request, "cpu.isa", [] { choose_isa("auto"); }) == "KIMI_VL_CPU_ISA: " + unknown);
}

TEST_CASE("what the processor lacks is refused with what it needs") {
  for (const Isa& isa : isas()) {
    if (isa.supported) continue;
    const std::string lacking = expect_error(ErrorKind::unsupported, "cpu.isa", [&] { choose_isa(isa.name); });
    CHECK(lacking.find(isa.requires_features) != std::string::npos);
  }
}
