#include "model/kv_pages.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <mutex>
#include <new>

#include "base/error.h"

namespace kimi {
namespace {

constexpr int64_t kSlabPages = 16;
constexpr int64_t kSmallSlab = int64_t{32} << 20;  // below, the backend is not asked what it has
constexpr double kMiB = 1 << 20;

int64_t pages_for(int64_t n_positions) { return (n_positions + kPagePositions - 1) / kPagePositions; }

// The last reference is ours: what others did with theirs lies before.
bool is_ours_alone(const PageRef& page) {
  if (page.use_count() != 1) return false;
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

}  // namespace

struct PagePool::Slab {
  Buffer memory;
  uint32_t free;  // a bit for each page
  uint32_t all;
};

PagePool::PagePool(std::shared_ptr<Backend> backend, const KvPageLayout& layout, int64_t budget, int64_t slab_pages)
    : backend_(std::move(backend)),
      layout_(layout),
      budget_(budget),
      slab_pages_(std::clamp<int64_t>(slab_pages, 1, kSlabPages)) {}

PagePool::~PagePool() = default;

std::shared_ptr<PagePool> PagePool::with_budget(std::shared_ptr<Backend> backend, const KvPageLayout& layout, int64_t budget) {
  KIMI_CHECK(budget >= layout.bytes(), ErrorKind::bad_request, "request.budget",
             "budget is %lld bytes, expected at least %lld: a page of %lld positions", static_cast<long long>(budget),
             static_cast<long long>(layout.bytes()), static_cast<long long>(kPagePositions));
  const uint64_t available = backend->available_memory();
  KIMI_CHECK(budget <= kSmallSlab || !available || static_cast<uint64_t>(budget) <= available, ErrorKind::out_of_memory,
             "memory.kv_pages",
             "a budget of %.0f MiB for pages and %.0f MiB of memory are available: use a smaller budget, or close other programs",
             static_cast<double>(budget) / kMiB, static_cast<double>(available) / kMiB);
  return std::shared_ptr<PagePool>(new PagePool(std::move(backend), layout, budget, budget / layout.bytes()));
}

std::shared_ptr<PagePool> PagePool::without_budget(std::shared_ptr<Backend> backend, const KvPageLayout& layout,
                                                   int64_t n_pages) {
  const uint64_t available = backend->available_memory();
  const int64_t bytes = n_pages * layout.bytes();
  KIMI_CHECK(
      bytes <= kSmallSlab || !available || static_cast<uint64_t>(bytes) <= available, ErrorKind::out_of_memory, "memory.kv_pages",
      "a context of %lld tokens needs %.0f MiB for its cache and %.0f MiB are available: use a context of at most %lld "
      "tokens (n_ctx), or close other programs",
      static_cast<long long>(n_pages * kPagePositions), static_cast<double>(bytes) / kMiB, static_cast<double>(available) / kMiB,
      static_cast<long long>(available / static_cast<uint64_t>(layout.bytes()) * kPagePositions));
  return std::shared_ptr<PagePool>(new PagePool(std::move(backend), layout, std::numeric_limits<int64_t>::max(), n_pages));
}

int64_t PagePool::n_pages() const {
  const std::lock_guard lock(lock_);
  return n_pages_;
}

// Throws Error(out_of_memory).
PagePool::Slab* PagePool::add_slab() {
  const int64_t bytes = slab_pages_ * layout_.bytes();
  const uint64_t available = bytes < kSmallSlab ? 0 : backend_->available_memory();
  Buffer memory;
  try {
    if (!available || available >= static_cast<uint64_t>(bytes)) memory = backend_->allocate(static_cast<size_t>(bytes));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::out_of_memory) throw;
  }
  KIMI_CHECK(
      memory.data(), ErrorKind::out_of_memory, "memory.kv_pages",
      "%.1f MiB more for the cache of %lld positions could not be had beside %.1f MiB in use: use a shorter text or smaller "
      "pictures, or close other sessions or programs",
      static_cast<double>(bytes) / kMiB, static_cast<long long>(slab_pages_ * kPagePositions),
      static_cast<double>(n_pages_ * layout_.bytes()) / kMiB);
  const uint32_t all = (uint32_t{1} << slab_pages_) - 1;
  slabs_.push_back(std::unique_ptr<Slab>(new Slab{std::move(memory), all, all}));
  return slabs_.back().get();
}

std::vector<PageRef> PagePool::take(int64_t n) {
  std::vector<PageRef> taken;
  taken.reserve(static_cast<size_t>(n));
  {
    const std::lock_guard lock(lock_);
    const int64_t left = budget_ / layout_.bytes() - n_pages_;
    KIMI_CHECK(n <= left, ErrorKind::out_of_memory, "memory.kv_pages",
               "%lld more pages of %lld positions (%.1f MiB) are needed and %lld are left of a budget of %.1f MiB: raise the "
               "budget, or close other sessions",
               static_cast<long long>(n), static_cast<long long>(kPagePositions), static_cast<double>(n * layout_.bytes()) / kMiB,
               static_cast<long long>(left), static_cast<double>(budget_) / kMiB);
    slabs_.reserve(slabs_.size() + static_cast<size_t>(n));
    n_pages_ += n;  // before memory is had: a pool that others fill meanwhile stays within its budget
  }
  int64_t counted = n;
  try {
    while (counted > 0) {
      Slab* slab;
      uint8_t* data;
      {
        const std::lock_guard lock(lock_);
        const auto found = std::find_if(slabs_.begin(), slabs_.end(), [](const auto& one) { return one->free != 0; });
        slab = found != slabs_.end() ? found->get() : add_slab();
        const int index = std::countr_zero(slab->free);
        slab->free &= slab->free - 1;
        data = slab->memory.data() + index * layout_.bytes();
      }
      --counted;  // from here on the page counts itself out
      auto* page = new (std::nothrow) Page(shared_from_this(), slab, data);
      if (!page) {
        give(slab, data);
        throw std::bad_alloc();
      }
      taken.push_back(PageRef(page));
      backend_->clear(data, layout_.bytes());
    }
  } catch (...) {
    const std::lock_guard lock(lock_);
    n_pages_ -= counted;
    throw;
  }
  return taken;
}

PageRef PagePool::page_from(const uint8_t* rows, int64_t n_bytes, int64_t n_filled) {
  KIMI_CHECK(n_filled >= 1 && n_filled <= kPagePositions, ErrorKind::bad_request, "request.page",
             "n_filled is %lld, expected 1 to %lld rows", static_cast<long long>(n_filled),
             static_cast<long long>(kPagePositions));
  KIMI_CHECK(n_bytes == layout_.bytes_of(n_filled), ErrorKind::bad_request, "request.page",
             "%lld bytes were given for %lld rows of %lld layers, expected %lld: they belong to another model or cache type",
             static_cast<long long>(n_bytes), static_cast<long long>(n_filled), static_cast<long long>(layout_.n_layers),
             static_cast<long long>(layout_.bytes_of(n_filled)));
  PageRef page = take(1).front();
  layout_.for_rows(n_filled,
                   [&](int64_t at, int64_t packed, int64_t bytes) { backend_->upload(page->data_ + at, rows + packed, bytes); });
  page->n_filled_ = n_filled;
  return page;
}

// Keeps one slab that is empty: the next page is often asked for at once.
void PagePool::give(Slab* slab, const uint8_t* page) noexcept {
  std::unique_ptr<Slab> unused;
  const std::lock_guard lock(lock_);
  slab->free |= uint32_t{1} << ((page - slab->memory.data()) / layout_.bytes());
  --n_pages_;
  if (slab->free != slab->all) return;
  const auto is_other_empty = [&](const auto& one) { return one.get() != slab && one->free == one->all; };
  if (std::none_of(slabs_.begin(), slabs_.end(), is_other_empty)) return;
  const auto at = std::find_if(slabs_.begin(), slabs_.end(), [&](const auto& one) { return one.get() == slab; });
  unused = std::move(*at);
  slabs_.erase(at);
}

Page::~Page() { pool_->give(slab_, data_); }

void Page::read(uint8_t* out) const {
  pool_->layout().for_rows(
      n_filled_, [&](int64_t at, int64_t packed, int64_t bytes) { pool_->backend_->download(out + packed, data_ + at, bytes); });
}

void PageTable::share(std::span<const PageRef> pages) {
  pages_.assign(pages.begin(), pages.end());
  addresses_.clear();
  for (const PageRef& page : pages_) addresses_.push_back(page->data_);
}

void PageTable::reserve(int64_t first, int64_t n) {
  const auto last = static_cast<size_t>(first / kPagePositions), n_pages = static_cast<size_t>(pages_for(first + n));
  const int64_t held = first % kPagePositions;
  const bool copies = held != 0 && !is_ours_alone(pages_[last]);
  std::vector<PageRef> taken = pool_->take(static_cast<int64_t>(n_pages - std::min(n_pages, pages_.size())) + (copies ? 1 : 0));
  if (taken.empty()) return;
  pages_.reserve(n_pages);
  addresses_.reserve(n_pages);
  if (copies) {
    pool_->layout().for_rows(held, [&](int64_t at, int64_t, int64_t bytes) {
      pool_->backend_->copy(taken.back()->data_ + at, pages_[last]->data_ + at, bytes);
    });
    taken.back()->n_filled_ = held;
    addresses_[last] = taken.back()->data_;
    pages_[last] = std::move(taken.back());
    taken.pop_back();
  }
  for (PageRef& page : taken) {
    addresses_.push_back(page->data_);
    pages_.push_back(std::move(page));
  }
}

void PageTable::wrote(int64_t first, int64_t n) {
  for (int64_t page = first / kPagePositions; page < pages_for(first + n); ++page)
    pages_[static_cast<size_t>(page)]->n_filled_ = std::min(kPagePositions, first + n - page * kPagePositions);
}

void PageTable::truncate(int64_t n_positions) {
  const auto n_pages = static_cast<size_t>(pages_for(n_positions));
  if (n_pages < pages_.size()) {
    pages_.resize(n_pages);
    addresses_.resize(n_pages);
  }
  const int64_t held = n_positions % kPagePositions;
  if (held != 0 && is_ours_alone(pages_.back())) pages_.back()->n_filled_ = held;
}

}  // namespace kimi
