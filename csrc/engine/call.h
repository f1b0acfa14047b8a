// Engine::Call: the engine for the length of one call.
#pragma once
#include <memory>
#include <mutex>

#include "engine/engine.h"

namespace kimi {

// Holds the engine for one call and lends the backend the caller's interrupt.
class Engine::Call {
 public:
  Call(Engine& engine, Interrupt* interrupt) : engine_(engine) {
    if (engine.fork_generation_ != fork_generation()) {  // a thread of the parent may hold the old one forever
      static_cast<void>(engine.mutex_.release());
      engine.mutex_ = std::make_unique<std::mutex>();
      engine.fork_generation_ = fork_generation();
    }
    engine.mutex_->lock();
    engine.backend_->set_interrupt(interrupt);
  }
  ~Call() {
    engine_.backend_->set_interrupt(nullptr);
    engine_.mutex_->unlock();
  }

 private:
  Engine& engine_;
};

}  // namespace kimi
