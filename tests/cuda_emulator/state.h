// What the parts of the emulator share. Kernels and tests do not include this.
#pragma once
#include <deque>
#include <vector>

#include "cuda_emulator/emu.h"

namespace emu {

// The emulator's own objects lie in a range of their own, so that checks tell them from host memory that a kernel must not touch.
void* take_own(size_t bytes);
void give_own(void* p, size_t bytes);
template <typename T>
struct Own {
  using value_type = T;
  Own() = default;
  template <typename U>
  Own(const Own<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(take_own(n * sizeof(T))); }
  void deallocate(T* p, size_t n) { give_own(p, n * sizeof(T)); }
  bool operator==(const Own&) const { return true; }
};

struct Copy {
  void* to;
  const void* from;
  int bytes, fill;
  unsigned char early[16];
  Where where;
};

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  unsigned slot = 0;  // of its stack
  struct Block* home = nullptr;
  bool waited_for_dependency = false;
  unsigned round = 0;  // exchanges of its warp so far
  const char* waits_for = nullptr;
  const Where* where = nullptr;
  std::vector<Copy> open;                // issued, not committed
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
};

// Where the lanes of a warp put down their words and pick up results.
constexpr int kMaxWords = 12;
struct alignas(16) Words {
  uint32_t w[kMaxWords];
};
struct Meeting {
  Words in[32], out[32];
};

struct Round : Meeting {
  const char* what = nullptr;
  Where where;
  int arrived = 0;
};

struct Warp {
  Round rounds[2];
  Fiber* waiting[32];
  int n_waiting = 0, live = 0;
  // Vector clocks of the race detector, by warps of the block.
  std::vector<uint32_t> clock;
};

struct Barrier {
  std::vector<Fiber*> waiting;
  Where where;
  int expected = 0;
};

struct Block {
  std::vector<Fiber, Own<Fiber>> fibers;
  std::vector<Warp, Own<Warp>> warps;
  Barrier barriers[16];
  int live = 0;
  unsigned number = 0;  // linear index in the grid
  uint64_t seen = 0;    // releases of other blocks that it has acquired
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
};

struct Launch {
  const char* name = "";
  Shape shape;
  uint32_t number = 0;
  const void* args = nullptr;  // host memory that a kernel may read: its own parameters
  size_t args_bytes = 0;
};
extern Launch launch;

inline Fiber* fiber() { return static_cast<Fiber*>(current); }

// scheduler.cpp: an exchange, for the lane that calls
Meeting& arrive(const char* what, const Where& where);
bool is_last();                 // of the warp to come: it computes for all, and
void depart();                  // lets the others go on
void rest(const Where& where);  // of the others, until then

// memory.cpp
enum class Region { device, shared, stack, own, other };
Region region_of(const void* p);
unsigned char* take_shared(unsigned slot, size_t bytes);  // poisoned
unsigned char* stack_top(unsigned slot);
constexpr size_t kStackBytes = 128 << 10, kSharedSlot = 256 << 10;
// Tops of stacks at equal distances of a power of two would share a few lines of the cache: they are spread over this many bytes.
constexpr size_t kStackSpread = 64 * 1088;
void device_access(bool allowed);  // host code must not touch device memory
void begin_launch(), end_launch();
void join_block(Block& block,
                const std::vector<Fiber*>& met);  // race detector: what these threads did is ordered before what they do next
void join_warp(Block& block, int warp);
void forget_shared(const Block& block);
void check_free_bytes();
void pending(void* p, int bytes, bool on);  // bytes that an asynchronous copy will write

uint64_t random_number();

}  // namespace emu
