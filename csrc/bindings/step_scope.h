// What the launches of a whole step on a CUDA device ask of the bindings: memory, and a library's products.
#pragma once

#include <torch/version.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "../cuda/platform.h"
#include "layer_path.h"
#include "scopes.h"
#include "step_choice.h"

#ifdef FASTGAN_WITH_CUDA
#include <ATen/cuda/CUDAEvent.h>
#endif

namespace fastgan::bindings {

// Counters and scratch memory for launches that run one after the other, ask for scratch memory once each, and so take
// turns at it. They stay where they are, for the captured graph.
struct StepMemory {
  Tensor counters;
  std::vector<Tensor> scratch;  // the last is the largest; work under way may still be in those before
};

// How many branches a captured step has. On a device each has a stream of its own, and torch gives each stream a
// workspace of cuBLAS (32 MiB on Hopper).
constexpr int branch_count = 3;

#ifdef FASTGAN_SIMT
// Whether the host model runs a branch's work when it has to be done, rather than at once.
inline bool branches_are_late() {
  const char* const setting = std::getenv("FASTGAN_SIMT_BRANCHES");
  return setting != nullptr && std::string_view(setting) == "late";
}

#endif

// Of the launches of one step that run one after the other: the step itself, and each of its branches.
class StepScope : public CudaScope {
 public:
  StepScope(const Tensor& like, StepMemory& memory)
      : CudaScope(like), options_(like.options().dtype(at::kByte)), memory_(memory) {}

  unsigned* counters() const override {
    if (!memory_.counters.defined()) memory_.counters = at::zeros({counter_count}, options_.dtype(at::kInt));
    return static_cast<unsigned*>(memory_.counters.mutable_data_ptr());
  }
  void* scratch(size_t bytes) const override {
    std::vector<Tensor>& all = memory_.scratch;
    if (all.empty() || all.back().numel() < int64_t(bytes)) all.push_back(at::empty({int64_t(bytes)}, options_));
    return all.back().mutable_data_ptr();
  }

  // Branches of this one, with memory of their own, which is never theirs and another's.
  // On a device stream_of(i) is the stream of branch i, or nothing: then it runs on this one's.
  template <class StreamOf>
  void add_branches(const Tensor& like, std::array<StepMemory, branch_count>& memories, const StreamOf& stream_of) {
    branches_.reserve(branch_count);  // they stay where they are
    for (int i = 0; i < branch_count; ++i) {
      Branch& branch = branches_.emplace_back();
      branch.scope = std::make_unique<StepScope>(like, memories[i]);
      branch.scope->rounds_to_bf16 = rounds_to_bf16;
      branch.scope->choice = choice, branch.scope->taken = taken;
      branch.scope->counters();  // are there before a graph is captured
#ifdef FASTGAN_SIMT
      if (branches_are_late()) branch.scope->later = &branch.later;
#elif defined(FASTGAN_WITH_CUDA)
      if (const std::optional<c10::cuda::CUDAStream> own = stream_of(i))
        branch.scope->own_stream_ = own, branch.scope->stream = *own;
#endif
    }
  }
  const Context& branch() const override {
    if (branches_.empty()) return *this;
    Branch& next = branches_[next_++ % branches_.size()];
    next.is_used = true;
#ifdef FASTGAN_SIMT
    if (next.scope->later != nullptr)  // what is known of its order when it runs
      next.later.push_back(
          [of = &next.later, after = simt::last_launches(nullptr)] { simt::continue_branch(of, after); });
#elif defined(FASTGAN_WITH_CUDA)
    if (next.scope->own_stream_) follow(*next.scope->own_stream_, own_stream());
#endif
    return *next.scope;
  }
  void join() const override {
    for (Branch& branch : branches_) {
      if (!std::exchange(branch.is_used, false)) continue;
#ifdef FASTGAN_SIMT
      for (const auto& work : std::exchange(branch.later, {})) work();
      simt::continue_branch(nullptr, simt::last_launches(&branch.later));
#elif defined(FASTGAN_WITH_CUDA)
      if (branch.scope->own_stream_) follow(own_stream(), *branch.scope->own_stream_);
#endif
    }
  }

  // Large products are torch's, as those of the layers' ops are, where nothing else was chosen.
  bool rounds_to_bf16 = false;
  const StepChoice* choice = nullptr;
  std::map<ProductKey, bool>* taken = nullptr;  // by the library?
  bool prefers_library(const cuda::ProductShape& p, size_t element) const override {
    if (rounds_to_bf16 && !has_mixed_products) return false;
    if (const auto chosen = chosen_for(p)) return *chosen == StepChoice::library;
    if (rounds_to_bf16) return !is_tiled_bf16(p.m, p.n, p.k);
    return !is_tiled(p.m, p.n, p.k, element == sizeof(float) ? at::kFloat : at::kDouble);
  }
  int64_t splits(const cuda::ProductShape& p) const override { return std::max<int64_t>(0, chosen_for(p).value_or(0)); }
  void took(const cuda::ProductShape& p, bool by_library) const override {
    if (taken != nullptr) (*taken)[key_of(p)] = by_library;
  }
  void product(const cuda::LibraryProduct<float>& p) const override { run(p); }
  void product(const cuda::LibraryProduct<double>& p) const override { run(p); }

 private:
  struct Branch {
    std::unique_ptr<StepScope> scope;
    bool is_used = false;  // since the last join
    std::vector<std::function<void()>> later;
  };

  template <class T>
  void run(const cuda::LibraryProduct<T>& p) const {
#ifdef FASTGAN_SIMT
    if (later != nullptr) return later->push_back([this, p] { multiply(p); });
#elif defined(FASTGAN_WITH_CUDA)
    if (own_stream_) {
      const c10::cuda::CUDAStreamGuard guard(*own_stream_);
      return multiply(p);
    }
#endif
    multiply(p);
  }

#ifdef FASTGAN_WITH_CUDA
  c10::cuda::CUDAStream own_stream() const {
    return own_stream_ ? *own_stream_ : at::cuda::getCurrentCUDAStream(options_.device().index());
  }
  // What `later` is given next comes after what `first` was given so far.
  static void follow(const c10::cuda::CUDAStream& later, const c10::cuda::CUDAStream& first) {
    at::cuda::CUDAEvent event;
    event.record(first);
    event.block(later);
  }
#endif

  template <class T>
  void multiply(const cuda::LibraryProduct<T>& p) const {
    const at::TensorOptions options = options_.dtype(sizeof(T) == sizeof(float) ? at::kFloat : at::kDouble);
    const auto view = [&](const T* data, int64_t rows, int64_t cols, int64_t row, int64_t col) {
      return at::from_blob(const_cast<T*>(data), {rows, cols}, {row, col}, options);
    };
    Tensor c = view(p.c, p.m, p.n, p.n, 1);
    const Tensor a = view(p.a, p.m, p.k, p.a_row, p.a_col), b = view(p.b, p.k, p.n, p.b_row, p.b_col);
    if (!rounds_to_bf16)
      at::mm_out(c, a, b);
    else
      multiply_rounded(c, a.to(at::kBFloat16), b.to(at::kBFloat16));
#ifdef FASTGAN_WITH_CUDA
    has_library_handle(options_.device().index()) = true;
#endif
  }

  // Of bfloat16 operands, with sums and results in float.
#ifdef FASTGAN_SIMT
  static constexpr bool has_mixed_products = true;
  static void multiply_rounded(Tensor& c, const Tensor& a, const Tensor& b) {
    at::mm_out(c, a.to(at::kFloat), b.to(at::kFloat));
  }
#elif TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
  static constexpr bool has_mixed_products = true;
  static void multiply_rounded(Tensor& c, const Tensor& a, const Tensor& b) { at::mm_out(c, a, b, at::kFloat); }
#else
  static constexpr bool has_mixed_products = false;
  static void multiply_rounded(Tensor&, const Tensor&, const Tensor&) {}
#endif

  static ProductKey key_of(const cuda::ProductShape& p) { return {static_cast<int64_t>(p.role), p.m, p.n, p.k}; }
  std::optional<int64_t> chosen_for(const cuda::ProductShape& p) const {
    if (choice == nullptr) return std::nullopt;
    const std::optional<int64_t> chosen = choice->of(key_of(p));
    if (chosen || p.role != cuda::ProductRole::forward) return chosen;
    // What was timed may have had both of G's batches in one pass, and this step, with a penalty, one.
    cuda::ProductShape both = p;
    both.m *= 2;
    return choice->of(key_of(both));
  }

  const at::TensorOptions options_;
  StepMemory& memory_;
  mutable std::vector<Branch> branches_;
  mutable size_t next_ = 0;
#ifdef FASTGAN_WITH_CUDA
  std::optional<c10::cuda::CUDAStream> own_stream_;  // of a branch
#endif
};

}  // namespace fastgan::bindings
