// Fibers, barriers and exchanges.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_emulator/state.h"

// Saves the callee's registers and the stack pointer, and goes on where `to` was saved. The jump through a register is
// four times as fast as `ret`, whose predicted target is always the wrong fiber's.
extern "C" void emu_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rax
  jmpq *%rax
.size emu_switch, .-emu_switch
)");
#else
#error "emu_switch is written for x86-64; an aarch64 one saves x19-x30 and d8-d15"
#endif

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#else
#define EMU_ASAN 0
#endif

namespace emu {

constinit thread_local Thread* current = nullptr;
Options options;
Counters counters;
Launch launch;

namespace {

struct Scheduler {
  std::vector<Fiber*> ready;  // the next one to run is the last
  void* host_stack_pointer = nullptr;
  int live = 0;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
};
Scheduler scheduler;
uint64_t random_state;

#if EMU_ASAN
const void* host_stack_bottom;
size_t host_stack_size;
#endif

void go(void** save, Fiber* to, bool ends) {
  ++counters.switches;
  current = to;
#if EMU_ASAN
  void* fake = nullptr;
  const void* bottom = to ? static_cast<const void*>(stack_top(to->slot) - kStackBytes + kStackSpread) : host_stack_bottom;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, bottom, to ? kStackBytes - kStackSpread : host_stack_size);
  emu_switch(save, to ? to->stack_pointer : scheduler.host_stack_pointer);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)ends;
  emu_switch(save, to ? to->stack_pointer : scheduler.host_stack_pointer);
#endif
}

[[noreturn]] void report_deadlock() {
  std::fprintf(stderr, "emu: %s: no thread can go on:\n", launch.name);
  std::vector<unsigned> lines;  // one thread for each place
  const Block& block = *fiber()->home;
  for (const Fiber& f : block.fibers) {
    if (!f.waits_for || std::find(lines.begin(), lines.end(), f.where->line()) != lines.end()) continue;
    lines.push_back(f.where->line());
    std::fprintf(stderr, "  thread %d of block %u waits in %s at %s:%u\n", f.linear, block.number, f.waits_for,
                 f.where->file_name(), f.where->line());
  }
  fail("deadlock");
}

// Leaves the current fiber, which is waiting or has ended, for another.
void leave(Fiber* me, bool ends) {
  if (scheduler.ready.empty()) {
    if (scheduler.live == 0) {
      void* unused;
      go(ends ? &unused : &me->stack_pointer, nullptr, ends);
      return;
    }
    current = me;
    report_deadlock();
  }
  if (options.order == Order::random)
    std::swap(scheduler.ready[random_number() % scheduler.ready.size()], scheduler.ready.back());
  Fiber* next = scheduler.ready.back();
  scheduler.ready.pop_back();
  if (next == me) return;
  void* unused;
  go(ends ? &unused : &me->stack_pointer, next, ends);
}

void wait(const char* what, const Where& where) {
  Fiber* me = fiber();
  me->waits_for = what;
  me->where = &where;
  leave(me, false);
  fiber()->waits_for = nullptr;
}

// Makes them runnable, so that the first of them runs first.
void wake(Fiber** fibers, size_t n) {
  if (options.order == Order::backward)
    scheduler.ready.insert(scheduler.ready.end(), fibers, fibers + n);
  else
    scheduler.ready.insert(scheduler.ready.end(), std::reverse_iterator(fibers + n), std::reverse_iterator(fibers));
}

void open_barrier(Block& block, Barrier& barrier) {
  ++counters.barriers;
  join_block(block, barrier.waiting);
  wake(barrier.waiting.data(), barrier.waiting.size());
  barrier.waiting.clear();
}

void entry() {
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &host_stack_bottom, &host_stack_size);
#endif
  scheduler.body(scheduler.context);
  Fiber* me = fiber();
  Block& block = *me->home;
  if (!me->groups.empty() || !me->open.empty())
    fail("thread %d of block %u returned with asynchronous copies that nobody waited for", me->linear, block.number);
  --block.live;
  --block.warps[static_cast<size_t>(me->warp)].live;
  --scheduler.live;
  Warp& warp = block.warps[static_cast<size_t>(me->warp)];
  if (warp.n_waiting)
    fail("a thread returned while lanes of its warp wait for it in %s at %s:%u", warp.waiting[0]->waits_for,
         warp.waiting[0]->where->file_name(), warp.waiting[0]->where->line());
  Barrier& all = block.barriers[0];
  if (!all.waiting.empty() && all.expected == 0 && static_cast<int>(all.waiting.size()) == block.live) open_barrier(block, all);
  leave(me, true);
  std::abort();
}

void prepare(Block& block, const Shape& shape, unsigned number, unsigned first_slot) {
  const unsigned n = shape.block.x * shape.block.y * shape.block.z;
  block.fibers.resize(n);
  block.warps.resize((n + 31) / 32);
  block.live = static_cast<int>(n);
  block.number = number;
  block.shared_bytes = shape.shared;
  block.shared = take_shared(first_slot ? number : 0, shape.shared);
  for (Warp& w : block.warps) w.clock.assign(block.warps.size(), 0);
  for (size_t w = 0; w < block.warps.size(); ++w) block.warps[w].clock[w] = 1;
  for (unsigned i = 0; i < n; ++i) {
    Fiber& f = block.fibers[i];
    f.thread = {i % shape.block.x, i / shape.block.x % shape.block.y, i / shape.block.x / shape.block.y};
    f.block = {number % shape.grid.x, number / shape.grid.x % shape.grid.y, number / shape.grid.x / shape.grid.y};
    f.block_dim = shape.block;
    f.grid_dim = shape.grid;
    f.linear = static_cast<int>(i);
    f.warp = static_cast<int>(i / 32);
    f.lane = static_cast<int>(i % 32);
    f.home = &block;
    f.slot = first_slot + i;
    ++block.warps[i / 32].live;
    void** top = reinterpret_cast<void**>(stack_top(first_slot + i));
#if EMU_ASAN
    __asan_unpoison_memory_region(stack_top(f.slot) - kStackBytes + kStackSpread, kStackBytes - kStackSpread);
#endif
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&entry);
    for (int r = 0; r < 6; ++r) *--top = nullptr;
    f.stack_pointer = top;
  }
}

void run_blocks(std::vector<Block>& blocks) {
  scheduler.live = 0;
  scheduler.ready.clear();
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    scheduler.live += block->live;
    for (auto f = block->fibers.rbegin(); f != block->fibers.rend(); ++f) scheduler.ready.push_back(&*f);
  }
  if (options.order == Order::backward) std::reverse(scheduler.ready.begin(), scheduler.ready.end());
  if (options.order == Order::random)
    std::swap(scheduler.ready[random_number() % scheduler.ready.size()], scheduler.ready.back());
  Fiber* first = scheduler.ready.back();
  scheduler.ready.pop_back();
  go(&scheduler.host_stack_pointer, first, false);
  for (Block& b : blocks) forget_shared(b);
}

}  // namespace

uint64_t random_number() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545f4914f6cdd1dull;
}

void fail(const char* format, ...) {
  std::fprintf(stderr, "emu: %s: ", *launch.name ? launch.name : "host");
  va_list list;
  va_start(list, format);
  std::vfprintf(stderr, format, list);
  va_end(list);
  if (current) std::fprintf(stderr, " [block %u, thread %d]", fiber()->home->number, current->linear);
  std::fprintf(stderr, "\n");
  std::fflush(nullptr);
  std::_Exit(3);
}

void block_barrier(int id, int n_threads, const Where& where) {
  Fiber* me = fiber();
  Block& block = *me->home;
  Barrier& barrier = block.barriers[id];
  if (barrier.waiting.empty()) {
    barrier.where = where;
    barrier.expected = n_threads;
  } else if (id == 0 &&
             (barrier.where.line() != where.line() || std::strcmp(barrier.where.file_name(), where.file_name()) != 0)) {
    fail("threads of a block meet at different barriers: %s:%u and %s:%u", barrier.where.file_name(), barrier.where.line(),
         where.file_name(), where.line());
  }
  if (n_threads % 32) fail("a barrier of %d threads is not one of whole warps", n_threads);
  barrier.waiting.push_back(me);
  const int expected = n_threads ? n_threads : block.live;
  if (static_cast<int>(barrier.waiting.size()) < expected) {
    wait("a barrier of the block", where);
    return;
  }
  open_barrier(block, barrier);
  wait("a barrier of the block", where);  // whose turn it is is the policy's choice
}

void yield(const Where& where) {
  if (scheduler.ready.empty()) report_deadlock();
  scheduler.ready.insert(scheduler.ready.begin(), fiber());
  wait("a loop that spins", where);
}

Meeting& arrive(const char* what, const Where& where) {
  Fiber* me = fiber();
  Warp& warp = me->home->warps[static_cast<size_t>(me->warp)];
  Round& round = warp.rounds[me->round & 1];
  if (warp.live != 32)
    fail("%s at %s:%u in a warp of %d lanes: all 32 have to take part", what, where.file_name(), where.line(), warp.live);
  if (round.arrived++ == 0) {
    round.what = what;
    round.where = where;
  } else if (round.what != what || round.where.line() != where.line()) {
    fail("lanes of a warp met in %s at line %u and in %s at line %u", round.what, round.where.line(), what, where.line());
  }
  return round;
}
bool is_last() {
  const Fiber* me = fiber();
  return me->home->warps[static_cast<size_t>(me->warp)].rounds[me->round & 1].arrived == 32;
}
void rest(const Where& where) {
  Fiber* me = fiber();
  Warp& warp = me->home->warps[static_cast<size_t>(me->warp)];
  const Round& round = warp.rounds[me->round++ & 1];
  warp.waiting[warp.n_waiting++] = me;
  wait(round.what, where);
}
void depart() {
  Fiber* me = fiber();
  Warp& warp = me->home->warps[static_cast<size_t>(me->warp)];
  warp.rounds[me->round++ & 1].arrived = 0;
  ++counters.exchanges;
  wake(warp.waiting, static_cast<size_t>(warp.n_waiting));
  warp.n_waiting = 0;
}

void* shared_memory(size_t bytes, const Where& where) {
  const Block& block = *fiber()->home;
  if (bytes > block.shared_bytes)
    fail("the kernel at %s:%u uses %zu bytes of shared memory and was launched with %zu", where.file_name(), where.line(), bytes,
         block.shared_bytes);
  return block.shared;
}

void dependency_wait() { fiber()->waited_for_dependency = true; }

void async_copy(void* shared, const void* global, int bytes, int fill, const Where& where) {
  if (reinterpret_cast<uintptr_t>(shared) % static_cast<unsigned>(fill) ||
      reinterpret_cast<uintptr_t>(global) % static_cast<unsigned>(bytes ? fill : 1))
    fail("asynchronous copy of %d bytes between misaligned addresses at %s:%u", fill, where.file_name(), where.line());
  Copy copy{shared, global, bytes, fill, {}, where};
  note(Access::read, global, bytes, where);
  std::memcpy(copy.early, global, static_cast<size_t>(bytes));
  note(Access::write, shared, fill, where);
  std::memset(shared, 0xff, static_cast<size_t>(fill));
  pending(shared, fill, true);
  counters.async_bytes += static_cast<unsigned>(bytes);
  fiber()->open.push_back(copy);
}
void async_commit() {
  Fiber* me = fiber();
  me->groups.push_back(std::move(me->open));
  me->open.clear();
}
void async_wait(int allowed, const Where&) {
  Fiber* me = fiber();
  while (static_cast<int>(me->groups.size()) > allowed) {
    for (const Copy& copy : me->groups.front()) {
      pending(copy.to, copy.fill, false);
      note(Access::write, copy.to, copy.fill, copy.where);
      std::memset(copy.to, 0, static_cast<size_t>(copy.fill));
      std::memcpy(copy.to, options.late_copies ? copy.from : copy.early, static_cast<size_t>(copy.bytes));
    }
    me->groups.pop_front();
  }
}

void run_grid(const char* name, const Shape& shape, void* bound, size_t bound_bytes, void (*call)(void*)) {
  const unsigned n_threads = shape.block.x * shape.block.y * shape.block.z, n_blocks = shape.grid.x * shape.grid.y * shape.grid.z;
  launch.name = name;
  launch.shape = shape;
  launch.args = bound;
  launch.args_bytes = bound_bytes;
  ++launch.number;
  if (n_threads == 0 || n_threads > 1024 || shape.block.z > 64) fail("a block of %u threads", n_threads);
  if (n_blocks == 0 || shape.grid.y > 65535 || shape.grid.z > 65535)
    fail("a grid of %u x %u x %u blocks", shape.grid.x, shape.grid.y, shape.grid.z);
  if (shape.shared > static_cast<size_t>(options.max_shared_bytes))
    fail("%zu bytes of shared memory; the device has %d for a block", shape.shared, options.max_shared_bytes);
  scheduler.body = call;
  scheduler.context = bound;
  random_state = options.seed * 0x9e3779b97f4a7c15ull + launch.number;
  random_number();
  ++counters.launches;
  counters.blocks += n_blocks;
  counters.threads += static_cast<uint64_t>(n_blocks) * n_threads;
  begin_launch();
  if (shape.cooperative) {
    std::vector<Block> blocks(n_blocks);
    for (unsigned b = 0; b < n_blocks; ++b) prepare(blocks[b], shape, b, b * n_threads);
    run_blocks(blocks);
  } else {
    std::vector<unsigned> numbers(n_blocks);
    for (unsigned b = 0; b < n_blocks; ++b) numbers[b] = options.order == Order::backward ? n_blocks - 1 - b : b;
    if (options.order == Order::random)
      for (unsigned b = n_blocks - 1; b > 0; --b) std::swap(numbers[b], numbers[random_number() % (b + 1)]);
    for (const unsigned b : numbers) {
      std::vector<Block> one(1);
      prepare(one[0], shape, b, 0);
      run_blocks(one);
    }
  }
  current = nullptr;
  end_launch();
  check_free_bytes();
  launch.name = "";
}

}  // namespace emu
