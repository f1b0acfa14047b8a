// The engine as Python holds it: shared with its sessions, and closed by close().
#pragma once
#include <memory>

#include "base/error.h"
#include "engine/engine.h"

namespace kimi {

struct PyEngine {
  std::shared_ptr<Engine> engine;
  Engine& get() const {
    KIMI_CHECK(engine, ErrorKind::bad_request, "engine.closed", "the model is closed: open it again");
    return *engine;
  }
};

}  // namespace kimi
