// What tests in other languages set and read of the emulator.
#include <cstring>

#include "cuda_emulator/emu.h"

#define KIMI_EXPORT extern "C" __attribute__((visibility("default")))

KIMI_EXPORT void emulator_order(const char* order, uint64_t seed) {
  emu::options.order = std::strcmp(order, "backward") == 0 ? emu::Order::backward
                       : std::strcmp(order, "random") == 0 ? emu::Order::random
                                                           : emu::Order::forward;
  emu::options.seed = seed;
}
KIMI_EXPORT void emulator_memory(uint64_t bytes) { emu::options.device_bytes = bytes; }
KIMI_EXPORT uint64_t emulator_allocated() { return emu::device_bytes(); }
KIMI_EXPORT uint64_t emulator_launches() { return emu::counters.launches; }
KIMI_EXPORT void emulator_fail(int64_t call) { emu::options.fail_call = call < 0 ? -1 : emu::runtime_calls() + call; }
