// Sessions, pools and pages as Python holds them: each keeps its engine, and asks whether that is still open.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>

#include "engine/session.h"
#include "py_engine.h"

namespace kimi {

struct PySession {
  std::shared_ptr<PyEngine> owner;
  std::unique_ptr<Session> session;
  Session& get() const {
    owner->get();
    return *session;
  }
};

struct PyPagePool {
  std::shared_ptr<PyEngine> owner;
  std::shared_ptr<PagePool> pool;
};

struct PyPage {
  PageRef page;
};

// "auto": none.
std::optional<KvType> parse_kv_type(const std::string& text);

}  // namespace kimi
