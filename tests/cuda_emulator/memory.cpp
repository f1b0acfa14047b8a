// Device memory, shared memory and stacks; in checked builds, what every load and store is held to.
//
// Device memory is one reserved range. An allocation lies at the end of its pages, with a page that nobody may touch behind
// it, and is filled with 0xff (NaN in every float format, a wild index as an integer). Host code that touches device memory
// faults, since its pages are open only while a kernel runs.
//
// A checked build compiles kernels with -fsanitize=thread and links, instead of that tool's library, the hooks at the end of
// this file: they see every load and store with the thread that makes it. They look for bytes outside of allocations, bytes
// that nobody wrote, races within and between blocks, writes to weights, reads before the wait of a dependent launch, and
// they count sectors and bank conflicts.
#include <execinfo.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>

#include "cuda_emulator/state.h"

namespace emu {
namespace {

constexpr size_t kArena = size_t{4} << 30, kPage = 4096, kStacks = 8192, kSharedSlots = 256, kOwn = size_t{1} << 30;

struct Range {
  unsigned char* base;
  size_t bytes;
  bool has(const void* p) const { return static_cast<size_t>(static_cast<const unsigned char*>(p) - base) < bytes; }
};
Range reserve(size_t bytes, int protection) {
  void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("cannot reserve %zu bytes", bytes);
  return {static_cast<unsigned char*>(p), bytes};
}

struct Allocation {
  unsigned char *pages, *begin;
  size_t bytes, page_bytes;
  bool weights = false;
};

// What is known of one byte of device or shared memory. Zeros: nothing.
struct Stamp {
  uint32_t launch, block, clock, thread;  // thread + 1; 0: never
  uint64_t order;                         // counts the releases of all blocks before it
};
struct Cell {
  Stamp write, reads[4];  // reads by warp
  bool written, pending;
};

struct Memory {
  Range arena = reserve(kArena, PROT_NONE);
  Range stacks = reserve(kStacks * kStackBytes, PROT_READ | PROT_WRITE);
  Range shared = reserve(kSharedSlots * kSharedSlot, PROT_READ | PROT_WRITE);
  Range own = reserve(kOwn, PROT_READ | PROT_WRITE);
  size_t used = kPage, own_used = 0;
  std::map<size_t, std::vector<void*>> own_free;
  std::map<unsigned char*, Allocation> allocations;  // by begin
  bool open = false;
  bool checked = false;
  Cell *device_cells = nullptr, *shared_cells = nullptr;  // checked builds
  Cell& cell(const void* p) {
    const size_t at = static_cast<size_t>(static_cast<const unsigned char*>(p) - arena.base);
    return at < arena.bytes ? device_cells[at] : shared_cells[static_cast<const unsigned char*>(p) - shared.base];
  }
};
Memory& memory() {
  static Memory* m = new Memory;
  return *m;
}

void on_fault(int, siginfo_t* info, void*) {
  const void* p = info->si_addr;
  if (memory().arena.has(p) && !current) fail("host code touches device memory at %p", p);
  if (memory().arena.has(p)) fail("access to device memory %p outside of any allocation", p);
  fail("access to %p", p);
}

// With every allocation: test frameworks put handlers of their own in between.
void catch_faults() {
  static unsigned char alternate[64 << 10];
  stack_t stack{};
  stack.ss_sp = alternate;
  stack.ss_size = sizeof alternate;
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

const Allocation* allocation_of(const void* p) {
  auto& all = memory().allocations;
  auto it = all.upper_bound(static_cast<unsigned char*>(const_cast<void*>(p)));
  if (it == all.begin()) return nullptr;
  --it;
  return static_cast<const unsigned char*>(p) < it->second.begin + it->second.bytes ? &it->second : nullptr;
}

}  // namespace

Region region_of(const void* p) {
  const Memory& m = memory();
  return m.arena.has(p)    ? Region::device
         : m.shared.has(p) ? Region::shared
         : m.stacks.has(p) ? Region::stack
         : m.own.has(p)    ? Region::own
                           : Region::other;
}

void* take_own(size_t bytes) {
  Memory& m = memory();
  auto& free = m.own_free[bytes];
  if (!free.empty()) {
    void* p = free.back();
    free.pop_back();
    return p;
  }
  void* p = m.own.base + m.own_used;
  m.own_used += (bytes + 63) / 64 * 64;
  if (m.own_used > kOwn) fail("out of memory for threads");
  return p;
}
void give_own(void* p, size_t bytes) { memory().own_free[bytes].push_back(p); }

unsigned char* stack_top(unsigned slot) {
  if (slot >= kStacks) fail("more than %zu threads at a time", kStacks);
  return memory().stacks.base + (slot + 1) * kStackBytes - slot % 64 * (kStackSpread / 64);
}

unsigned char* take_shared(unsigned slot, size_t bytes) {
  if (slot >= kSharedSlots) fail("more than %zu resident blocks", kSharedSlots);
  // The end of what was asked for is the end of the slot, and the next slot starts with a gap: an overrun meets poison.
  unsigned char* end = memory().shared.base + (slot + 1) * kSharedSlot - 1024;
  unsigned char* begin = end - (bytes + 127) / 128 * 128;
  std::memset(begin, 0xff, static_cast<size_t>(end - begin) + 1024);
  return begin;
}

void device_access(bool allowed) {
  Memory& m = memory();
  if (m.open == allowed) return;
  m.open = allowed;
  for (auto& [begin, a] : m.allocations) mprotect(a.pages, a.page_bytes, allowed ? PROT_READ | PROT_WRITE : PROT_NONE);
}
void begin_launch() { device_access(true); }
void end_launch() {}

void check_free_bytes() {
  for (auto& [begin, a] : memory().allocations) {
    for (const unsigned char* p = a.pages; p < a.begin; ++p)
      if (*p != 0xdb) fail("something wrote before an allocation of %zu bytes", a.bytes);
    for (const unsigned char* p = a.begin + a.bytes; p < a.pages + a.page_bytes; ++p)
      if (*p != 0xdb) fail("something wrote behind an allocation of %zu bytes", a.bytes);
  }
}

void* allocate_device(size_t bytes) {
  catch_faults();
  Memory& m = memory();
  const size_t page_bytes = (bytes + kPage - 1) / kPage * kPage;
  if (m.used + page_bytes + kPage > kArena) return nullptr;
  Allocation a;
  a.pages = m.arena.base + m.used;
  a.page_bytes = page_bytes;
  a.bytes = bytes;
  a.begin = a.pages + (page_bytes - (bytes + 15) / 16 * 16);  // cudaMalloc promises 256; 16 is what kernels may rely on
  m.used += page_bytes + kPage;
  mprotect(a.pages, page_bytes, PROT_READ | PROT_WRITE);
  std::memset(a.pages, 0xdb, page_bytes);
  std::memset(a.begin, 0xff, bytes);
  if (!m.open) mprotect(a.pages, page_bytes, PROT_NONE);
  m.allocations[a.begin] = a;
  return a.begin;
}

bool release_device(void* p) {
  Memory& m = memory();
  auto it = m.allocations.find(static_cast<unsigned char*>(p));
  if (it == m.allocations.end()) return false;
  madvise(it->second.pages, it->second.page_bytes, MADV_DONTNEED);
  mprotect(it->second.pages, it->second.page_bytes, PROT_NONE);  // addresses are never used again: stale pointers fault
  m.allocations.erase(it);
  return true;
}

size_t device_bytes() {
  size_t sum = 0;
  for (auto& [begin, a] : memory().allocations) sum += a.bytes;
  return sum;
}

void mark_weights(const void* p) {
  auto it = memory().allocations.find(static_cast<unsigned char*>(const_cast<void*>(p)));
  if (it == memory().allocations.end()) fail("mark_weights: not an allocation");
  it->second.weights = true;
}

// ---- checks ---------------------------------------------------------------------------------------------------------

bool checked_build() { return memory().checked; }

namespace {
uint64_t releases = 0;  // of all blocks so far
}

// Coarse: an acquire takes in all releases so far, of whatever counter. Blocks that use several counters may hide races from it.
void add_release(uint32_t* counter, uint32_t n) {
  *counter += n;
  ++releases;
}
uint32_t load_acquire(const uint32_t* counter) {
  fiber()->home->seen = releases;
  return *counter;
}

namespace {

// Counters of how well the lanes of a warp access memory together: the n-th access of each lane at one place is one request.
struct Request {
  int lanes = 0;
  const void* address[32];
};
struct Key {
  const void* place;
  uint32_t warp, times;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& k) const { return reinterpret_cast<size_t>(k.place) * 31 + k.warp * 1000003u + k.times * 7919u; }
};
std::unordered_map<Key, Request, KeyHash> requests;
std::unordered_map<const void*, std::vector<uint32_t>> times;  // place -> per thread

void count(const Request& request, int bytes, Region region) {
  if (region == Region::shared) {
    // A phase serves 32 lanes with 4 bytes, 16 with 8, 8 with 16; a bank serves one word of 4 bytes in a cycle.
    const int per_phase = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += per_phase) {
      std::vector<uintptr_t> words[32];
      for (int l = first; l < first + per_phase; ++l) {
        if (!request.address[l]) continue;
        const uintptr_t word = reinterpret_cast<uintptr_t>(request.address[l]) / 4;
        for (uintptr_t w = word; w < word + static_cast<uintptr_t>(std::max(1, bytes / 4)); ++w)
          if (std::find(words[w % 32].begin(), words[w % 32].end(), w) == words[w % 32].end()) words[w % 32].push_back(w);
      }
      size_t cycles = 0;
      for (auto& w : words) cycles = std::max(cycles, w.size());
      if (!cycles) continue;
      ++counters.shared_requests;
      counters.shared_cycles += cycles;
    }
  } else {
    std::vector<uintptr_t> sectors;
    int n = 0;
    for (const void* p : request.address) {
      if (!p) continue;
      ++n;
      for (uintptr_t s = reinterpret_cast<uintptr_t>(p) / 32;
           s <= (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes) - 1) / 32; ++s)
        sectors.push_back(s);
    }
    std::sort(sectors.begin(), sectors.end());
    counters.sectors += static_cast<uint64_t>(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
    counters.sectors_ideal += static_cast<uint64_t>((n * bytes + 31) / 32);
  }
}

void tally(const void* p, int bytes, Region region, const void* place) {
  Fiber* me = fiber();
  auto& mine = times[place];
  if (mine.size() < 1024) mine.resize(1024);
  const Key key{place, static_cast<uint32_t>(me->warp), mine[static_cast<size_t>(me->linear)]++};
  Request& request = requests[key];
  if (request.lanes == 0) std::fill_n(request.address, 32, nullptr);
  request.address[me->lane] = p;
  if (++request.lanes == 32) {
    count(request, bytes, region);
    requests.erase(key);
  }
}

// Whether it lies in a part of the program that is loaded for reading only.
bool is_constant(const void* p) {
  static std::vector<Range> ranges;
  if (ranges.empty())
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
          for (int i = 0; i < info->dlpi_phnum; ++i)
            if (const auto& h = info->dlpi_phdr[i]; (h.p_type == PT_LOAD && !(h.p_flags & PF_W)) || h.p_type == PT_GNU_RELRO)
              ranges.push_back({reinterpret_cast<unsigned char*>(info->dlpi_addr + h.p_vaddr), h.p_memsz});
          return 0;
        },
        nullptr);
  return std::any_of(ranges.begin(), ranges.end(), [&](const Range& r) { return r.has(p); });
}

void describe(const void* place) {
  void* frame = const_cast<void*>(place);
  char** names = backtrace_symbols(&frame, 1);
  if (names) std::fprintf(stderr, "  at %s\n", names[0]);
}

void access(const void* p, int bytes, Access what, const void* place, bool deferred = false) {
  if (!current) return;
  const Region region = region_of(p);
  if (region == Region::stack || region == Region::own) return;
  Fiber* me = fiber();
  const Block& block = *me->home;
  const char* verb = what == Access::read ? "reads" : "writes";
  if (region == Region::other) {
    if (static_cast<size_t>(static_cast<const char*>(p) - static_cast<const char*>(launch.args)) < launch.args_bytes) return;
    if (what == Access::read && is_constant(p)) return;
    if (p == static_cast<const void*>(&current)) return;
    describe(place);
    fail("a kernel %s host memory at %p", verb, p);
  }
  if (bytes > 1 && reinterpret_cast<uintptr_t>(p) % static_cast<unsigned>(std::min(bytes, 16))) {
    describe(place);
    fail("a kernel %s %d bytes at the misaligned address %p", verb, bytes, p);
  }
  const Allocation* allocation = nullptr;
  if (region == Region::device) {
    allocation = allocation_of(p);
    if (!allocation || static_cast<const unsigned char*>(p) + bytes > allocation->begin + allocation->bytes) {
      describe(place);
      fail("a kernel %s %d bytes at %p, outside of any allocation", verb, bytes, p);
    }
    if (what == Access::write && allocation->weights) fail("a kernel writes to weights");
    if (!allocation->weights && launch.shape.dependent && !me->waited_for_dependency)
      fail("a dependent kernel %s results of others before it waits for them", verb);
    (what == Access::read ? counters.global_read : counters.global_written) += static_cast<unsigned>(bytes);
  } else if (static_cast<const unsigned char*>(p) < block.shared ||
             static_cast<const unsigned char*>(p) + bytes > block.shared + block.shared_bytes) {
    describe(place);
    fail("a kernel %s %d bytes of shared memory %ld bytes behind its beginning; the block has %zu", verb, bytes,
         static_cast<long>(static_cast<const unsigned char*>(p) - block.shared), block.shared_bytes);
  }
  tally(p, bytes, region, place);
  if (allocation && allocation->weights) return;
  const Warp& warp = block.warps[static_cast<size_t>(me->warp)];
  const uint32_t now = warp.clock[static_cast<size_t>(me->warp)];
  for (int i = 0; i < bytes; ++i) {
    Cell& cell = memory().cell(static_cast<const unsigned char*>(p) + i);
    // Whether what another thread did is ordered before now.
    const auto ordered = [&](const Stamp& s) {
      if (s.thread == 0 || s.launch != launch.number) return true;
      if (s.block != block.number) return s.order <= me->home->seen;  // written before a release that this block has acquired
      const int thread = static_cast<int>(s.thread) - 1;
      if (thread == me->linear) return true;
      return thread / 32 == me->warp ? s.clock < now : s.clock <= warp.clock[static_cast<size_t>(thread / 32)];
    };
    const Stamp mine{launch.number, block.number, now, static_cast<uint32_t>(me->linear) + 1, releases + 1};
    if (cell.pending && !deferred) {
      describe(place);
      fail("a kernel %s bytes that an asynchronous copy is still writing", verb);
    }
    if (!ordered(cell.write)) {
      describe(place);
      fail("race: thread %u of block %u wrote what this thread %s without a barrier between (%s memory)", cell.write.thread - 1,
           cell.write.block, verb, region == Region::shared ? "shared" : "device");
    }
    if (what == Access::read) {
      if (!cell.written) {
        describe(place);
        fail("a kernel reads byte %d of %d that nobody wrote (%s memory)", i, bytes,
             region == Region::shared ? "shared" : "device");
      }
      cell.reads[me->warp & 3] = mine;
    } else {
      for (const Stamp& read : cell.reads)
        if (!ordered(read)) {
          describe(place);
          fail("race: this thread writes what thread %u of block %u read without a barrier between (%s memory)", read.thread - 1,
               read.block, region == Region::shared ? "shared" : "device");
        }
      cell.write = mine;
      cell.written = true;
    }
  }
}

}  // namespace

void note(Access what, const void* p, int bytes, const Where& where) {
  if (memory().checked && bytes > 0) access(p, bytes, what, where.function_name(), false);
}

void pending(void* p, int bytes, bool on) {
  if (!memory().checked) return;
  for (int i = 0; i < bytes; ++i) memory().cell(static_cast<unsigned char*>(p) + i).pending = on;
}

void host_wrote(const void* p, size_t bytes) {
  if (!memory().checked) return;
  if (const Allocation* allocation = allocation_of(p); allocation && allocation->weights) return;  // no kernel writes there
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = memory().cell(static_cast<const unsigned char*>(p) + i);
    cell = Cell{};
    cell.written = true;
  }
}

void forget_shared(const Block& block) {
  requests.clear();
  times.clear();
  if (!memory().checked) return;
  std::memset(&memory().cell(block.shared), 0, block.shared_bytes * sizeof(Cell));
}

void join_block(Block& block, const std::vector<Fiber*>& met) {
  if (!memory().checked) return;
  std::vector<uint32_t> all(block.warps.size(), 0);
  std::vector<bool> in(block.warps.size(), false);
  for (const Fiber* f : met) in[static_cast<size_t>(f->warp)] = true;
  for (size_t w = 0; w < in.size(); ++w)
    for (size_t k = 0; in[w] && k < all.size(); ++k) all[k] = std::max(all[k], block.warps[w].clock[k]);
  for (size_t w = 0; w < in.size(); ++w) {
    if (!in[w]) continue;
    block.warps[w].clock = all;
    ++block.warps[w].clock[w];
  }
}
void join_warp(Block& block, int warp) { ++block.warps[static_cast<size_t>(warp)].clock[static_cast<size_t>(warp)]; }

}  // namespace emu

#ifdef EMU_HOOKS
// The calls that -fsanitize=thread puts before every load and store.
using emu::Access;
#define HOOK(name, bytes, what) \
  extern "C" void name(void* p) { emu::access(p, bytes, what, __builtin_return_address(0)); }
HOOK(__tsan_read1, 1, Access::read)
HOOK(__tsan_read2, 2, Access::read)
HOOK(__tsan_read4, 4, Access::read)
HOOK(__tsan_read8, 8, Access::read)
HOOK(__tsan_read16, 16, Access::read)
HOOK(__tsan_write1, 1, Access::write)
HOOK(__tsan_write2, 2, Access::write)
HOOK(__tsan_write4, 4, Access::write)
HOOK(__tsan_write8, 8, Access::write)
HOOK(__tsan_write16, 16, Access::write)
HOOK(__tsan_unaligned_read2, 2, Access::read)
HOOK(__tsan_unaligned_read4, 4, Access::read)
HOOK(__tsan_unaligned_read8, 8, Access::read)
HOOK(__tsan_unaligned_read16, 16, Access::read)
HOOK(__tsan_unaligned_write2, 2, Access::write)
HOOK(__tsan_unaligned_write4, 4, Access::write)
HOOK(__tsan_unaligned_write8, 8, Access::write)
HOOK(__tsan_unaligned_write16, 16, Access::write)
extern "C" void __tsan_read_range(void* p, unsigned long n) {
  emu::access(p, static_cast<int>(n), Access::read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, unsigned long n) {
  emu::access(p, static_cast<int>(n), Access::write, __builtin_return_address(0));
}
// clang calls these in place of the plain ones.
extern "C" void* __tsan_memset(void* p, int value, size_t n) {
  emu::access(p, static_cast<int>(n), Access::write, __builtin_return_address(0));
  return std::memset(p, value, n);
}
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t n) {
  emu::access(from, static_cast<int>(n), Access::read, __builtin_return_address(0));
  emu::access(to, static_cast<int>(n), Access::write, __builtin_return_address(0));
  return std::memcpy(to, from, n);
}
extern "C" void* __tsan_memmove(void* to, const void* from, size_t n) {
  emu::access(from, static_cast<int>(n), Access::read, __builtin_return_address(0));
  emu::access(to, static_cast<int>(n), Access::write, __builtin_return_address(0));
  return std::memmove(to, from, n);
}
extern "C" void __tsan_init() {
  emu::Memory& m = emu::memory();
  if (m.checked) return;
  m.checked = true;
  m.device_cells = reinterpret_cast<emu::Cell*>(emu::reserve(emu::kArena * sizeof(emu::Cell), PROT_READ | PROT_WRITE).base);
  m.shared_cells = reinterpret_cast<emu::Cell*>(
      emu::reserve(emu::kSharedSlots * emu::kSharedSlot * sizeof(emu::Cell), PROT_READ | PROT_WRITE).base);
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
#endif
