// A backend whose memory is out of reach: its buffers, vectors, weights and cache pages are closed but for the length of an
// operation, so that whoever follows a pointer of it between two operations ends the program. What it computes is the CPU's.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <utility>

#include "backend/cpu/cpu_options.h"

namespace kimi {

class FarBackend final : public Backend {
 public:
  const char* name() const override { return "far"; }
  const char* isa() const override { return near_->isa(); }
  int n_threads() const override { return near_->n_threads(); }
  bool rounds_activations() const override { return near_->rounds_activations(); }
  void set_interrupt(Interrupt* interrupt) override { near_->set_interrupt(interrupt); }
  void check_interrupt() override { near_->check_interrupt(); }
  void set_observer(InputObserver* observer) override { near_->set_observer(observer); }
  bool observed() const override { return near_->observed(); }

  Buffer allocate(size_t bytes) override { return Buffer(std::make_unique<Closed>(*this, bytes)); }
  Buffer adopt(const float* host, int64_t n) override {
    Buffer copy = allocate(static_cast<size_t>(n) * sizeof(float));
    upload(copy.data(), host, n * int64_t{sizeof(float)});
    return copy;
  }
  Matrix prepare(const Matrix& w, Use) override {
    const auto bytes = static_cast<size_t>((w.count - 1) * w.stack_bytes + w.rows * w.row_bytes);
    Buffer& copy = *weights_.insert(weights_.end(), allocate(bytes));
    Matrix far = w;
    far.data = copy.data();
    upload(copy.data(), w.data, static_cast<int64_t>(bytes));
    return far;
  }
  uint64_t available_memory() const override { return near_->available_memory(); }
  void upload(void* out, const void* host, int64_t bytes) override {
    run([&] { near_->upload(out, host, bytes); });
  }
  void download(void* host, const void* x, int64_t bytes) override {
    run([&] { near_->download(host, x, bytes); });
  }
  void copy(void* out, const void* x, int64_t bytes) override {
    run([&] { near_->copy(out, x, bytes); });
  }
  void clear(void* out, int64_t bytes) override {
    run([&] { near_->clear(out, bytes); });
  }
  void finish() override { near_->finish(); }
  std::unique_ptr<Step> new_step() override { return near_->new_step(); }
  void run_step(const Step&, const StepKey&, const std::function<void()>& body) override { body(); }
  void for_each(int64_t n, const std::function<void(int64_t)>& body) override { near_->for_each(n, body); }
  void embed(const Matrix& table, const Step& step, float* out) override {
    run([&] { near_->embed(table, step, out); });
  }
  void gather_rows(const Step& step, const float* x, int64_t dim, float* out) override {
    run([&] { near_->gather_rows(step, x, dim, out); });
  }
  void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) override {
    run([&] { near_->rms_norm(x, weight, eps, n, dim, out); });
  }
  void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim,
                  float* out) override {
    run([&] { near_->layer_norm(x, weight, bias, eps, n, dim, out); });
  }
  void add(const float* x, int64_t n, float* out) override {
    run([&] { near_->add(x, n, out); });
  }
  void linear(const LinearArgs& args) override {
    run([&] { near_->linear(args); });
  }
  void linear_to_host(const LinearArgs& args) override {
    run([&] { near_->linear_to_host(args); });
  }
  void ffn(const FfnArgs& args) override {
    run([&] { near_->ffn(args); });
  }
  void moe_ffn(const MoeArgs& args) override {
    run([&] { near_->moe_ffn(args); });
  }
  void mla_attention(const MlaArgs& args) override {
    run([&] { near_->mla_attention(args); });
  }
  void patches(const PatchArgs& args) override {
    run([&] { near_->patches(args); });
  }
  void merge_rows(const MergeArgs& args) override {
    run([&] { near_->merge_rows(args); });
  }
  void vit_attention(const VitAttentionArgs& args) override {
    run([&] { near_->vit_attention(args); });
  }

  int64_t n_operations() const { return n_operations_; }
  size_t n_buffers() const { return all_.size() - weights_.size(); }  // held by others

 private:
  struct Closed final : Buffer::Memory {
    Closed(FarBackend& owner, size_t n) : backend(owner) {
      const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
      mapped = (n + page) / page * page;
      data = ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      bytes = n;
      backend.all_.insert(this);
    }
    ~Closed() override {
      backend.all_.erase(this);
      ::munmap(data, mapped);
    }
    FarBackend& backend;
    size_t mapped;
  };

  template <typename Body>
  void run(const Body& body) {
    struct Open {
      FarBackend& backend;
      ~Open() { backend.protect(PROT_NONE); }
    } const open{*this};
    protect(PROT_READ | PROT_WRITE);
    ++n_operations_;
    body();
  }
  void protect(int protection) {
    for (const Closed* memory : all_) ::mprotect(memory->data, memory->mapped, protection);
  }

  std::unique_ptr<Backend> near_ = make_cpu_backend({});
  std::set<Closed*> all_;
  std::vector<Buffer> weights_;
  int64_t n_operations_ = 0;
};

}  // namespace kimi
