#include "base/pages.h"

#include <sys/mman.h>

namespace kimi {

void* take_pages(size_t bytes) noexcept {
  void* block = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  if (bytes >= kLargePage) ::madvise(block, bytes, MADV_HUGEPAGE);  // a wish: small pages do as well
#endif
  return block;
}

void give_pages(void* block, size_t bytes) noexcept {
  if (block) ::munmap(block, bytes);
}

}  // namespace kimi
