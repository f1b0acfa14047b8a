// The latent cache in pages. PagePool owns the memory, which is a backend's, and its budget; Page is one page, shared by
// reference; PageTable is the pages of one session. A page that anybody else refers to never changes: who wants to write gets a
// copy.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/fork_safe_lock.h"

namespace kimi {

class Page;
using PageRef = std::shared_ptr<Page>;

// All functions may be called by several threads.
class PagePool : public std::enable_shared_from_this<PagePool> {
 public:
  // budget: bytes of all pages handed out. Throws Error(bad_request, "request.budget") when it holds no page and
  // Error(out_of_memory, "memory.kv_pages") when the backend has less memory available.
  static std::shared_ptr<PagePool> with_budget(std::shared_ptr<Backend> backend, const KvPageLayout& layout, int64_t budget);
  // For sessions of n_pages at most, as many as the backend has memory for. Throws Error(out_of_memory, "memory.kv_pages") when
  // it does not have enough for one now.
  static std::shared_ptr<PagePool> without_budget(std::shared_ptr<Backend> backend, const KvPageLayout& layout, int64_t n_pages);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  const KvPageLayout& layout() const { return layout_; }
  int64_t budget() const { return budget_; }
  int64_t n_pages() const;  // handed out
  int64_t bytes_in_use() const { return n_pages() * layout_.bytes(); }

  // All n or none: throws Error(out_of_memory, "memory.kv_pages") before any memory is touched. A page is cleared when it is
  // handed out, so that what is counted is resident.
  std::vector<PageRef> take(int64_t n);
  // rows, on the host: [n_layers][n_filled][row bytes], n_bytes in all.
  PageRef page_from(const uint8_t* rows, int64_t n_bytes, int64_t n_filled);

 private:
  friend class Page;
  friend class PageTable;
  struct Slab;
  PagePool(std::shared_ptr<Backend> backend, const KvPageLayout& layout, int64_t budget, int64_t slab_pages);
  Slab* add_slab();
  void give(Slab* slab, const uint8_t* page) noexcept;

  const std::shared_ptr<Backend> backend_;
  const KvPageLayout layout_;
  const int64_t budget_, slab_pages_;
  mutable ForkSafeLock lock_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  int64_t n_pages_ = 0;
};

class Page {
 public:
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  const std::shared_ptr<PagePool>& pool() const { return pool_; }
  int64_t n_filled() const { return n_filled_; }  // rows written
  void read(uint8_t* out) const;                  // to the host, as page_from takes it

 private:
  friend class PagePool;
  friend class PageTable;
  Page(std::shared_ptr<PagePool> pool, PagePool::Slab* slab, uint8_t* data) : pool_(std::move(pool)), slab_(slab), data_(data) {}
  const std::shared_ptr<PagePool> pool_;
  PagePool::Slab* const slab_;
  uint8_t* const data_;  // the backend's
  int64_t n_filled_ = 0;
};

class PageTable {
 public:
  explicit PageTable(std::shared_ptr<PagePool> pool) : pool_(std::move(pool)) {}
  const std::shared_ptr<PagePool>& pool() const { return pool_; }
  const std::vector<PageRef>& pages() const { return pages_; }
  KvView view() const { return {addresses_.data(), pool_->layout()}; }  // until the next change

  // References to pages of this pool, instead of those held.
  void share(std::span<const PageRef> pages);
  // Makes positions [first, first + n) writable; `first` are held. Throws Error(out_of_memory) and changes nothing.
  void reserve(int64_t first, int64_t n);
  // Positions [first, first + n) have been written.
  void wrote(int64_t first, int64_t n);
  // Drops what lies beyond n_positions.
  void truncate(int64_t n_positions);

 private:
  std::shared_ptr<PagePool> pool_;
  std::vector<PageRef> pages_;
  std::vector<uint8_t*> addresses_;  // of pages_
};

}  // namespace kimi
