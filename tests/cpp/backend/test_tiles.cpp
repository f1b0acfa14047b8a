// A product leaves the tile registers of its thread as it found them: unused, so that nobody saves or meets them.
#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "backend/cpu/kernels/kernel_table.h"
#include "base/isa.h"

using namespace kimi;

#if defined(__x86_64__)
namespace {

// XINUSE: the parts of this thread's registers that are not in their initial state. XGETBV with 1, which every processor with
// tiles has.
bool tiles_are_in_use() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  constexpr uint32_t kConfiguration = 1u << 17, kData = 1u << 18;
  return low & (kConfiguration | kData);
}

}  // namespace

TEST_CASE("tiles are released after every product") {
  for (const Isa& isa : isas()) {
    if (isa.id != IsaId::amx || !isa.supported) continue;
    const cpu::KernelTable& kernels = cpu::select_kernels("amx");
    CHECK(!tiles_are_in_use());
    std::vector<uint16_t> a(40 * 64, 0x3f80), b(64 * 32, 0x3f80), bits(40 * 32);  // ones
    std::vector<float> out(40 * 32);
    kernels.gemm_bf16(a.data(), 64, b.data(), 32, 64, 40, out.data(), 32);
    CHECK(!tiles_are_in_use());
    CHECK(out.front() == 64.0f);
    CHECK(out.back() == 64.0f);
    kernels.gemm_bf16_rows(a.data(), 64, b.data(), 32, 64, 40, bits.data(), 32);
    CHECK(!tiles_are_in_use());
    kernels.gemm_bf16_pairs(a.data(), 64, b.data(), 32, 64, 40, bits.data(), 32);
    CHECK(!tiles_are_in_use());
    CHECK(bits.back() == 0x4280);  // 64
    std::vector<float> m(32, -1e38f), l(32), o(32 * 32), scores(cpu::kMaxAttentionKeys * 32);
    cpu::AttentionBlockBf16 block{};
    block.lanes = block.dk1 = block.dv = block.ldk1 = block.ldv = 32;
    block.n_keys = 40;
    block.q_t = b.data();
    block.k1 = a.data();
    block.v = a.data();
    block.m = m.data();
    block.l = l.data();
    block.o_t = o.data();
    block.scores = scores.data();
    kernels.attention_block_bf16(block);
    CHECK(!tiles_are_in_use());
    CHECK(l.front() == 40.0f);
    CHECK(o.back() == 40.0f);
  }
}
#endif
