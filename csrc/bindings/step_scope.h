// What the launches of a whole step on a CUDA device ask of the bindings: memory, and a library's products.
#pragma once

#include <torch/version.h>

#include <algorithm>
#include <map>
#include <optional>

#include "../cuda/platform.h"
#include "layer_path.h"
#include "scopes.h"
#include "step_choice.h"

namespace fastgan::bindings {

// A step's counters and scratch memory are its own, at places that stay, for the captured graph. Its launches run one
// after the other and ask for scratch memory once each, so they take turns at it.
class StepScope : public CudaScope {
 public:
  StepScope(const Tensor& like, const Tensor& counters, Tensor& scratch)
      : CudaScope(like), counters_(counters), scratch_(scratch) {}

  unsigned* counters() const override { return static_cast<unsigned*>(counters_.mutable_data_ptr()); }
  void* scratch(size_t bytes) const override {
    if (!scratch_.defined() || scratch_.numel() < int64_t(bytes))
      scratch_ = at::empty({int64_t(bytes)}, counters_.options().dtype(at::kByte));
    return scratch_.mutable_data_ptr();
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
  void product(const cuda::LibraryProduct<float>& p) const override { multiply(p); }
  void product(const cuda::LibraryProduct<double>& p) const override { multiply(p); }

 private:
  template <class T>
  void multiply(const cuda::LibraryProduct<T>& p) const {
    const at::TensorOptions options = counters_.options().dtype(sizeof(T) == sizeof(float) ? at::kFloat : at::kDouble);
    const auto view = [&](const T* data, int64_t rows, int64_t cols, int64_t row, int64_t col) {
      return at::from_blob(const_cast<T*>(data), {rows, cols}, {row, col}, options);
    };
    Tensor c = view(p.c, p.m, p.n, p.n, 1);
    const Tensor a = view(p.a, p.m, p.k, p.a_row, p.a_col), b = view(p.b, p.k, p.n, p.b_row, p.b_col);
    if (!rounds_to_bf16)
      at::mm_out(c, a, b);
    else
      multiply_rounded(c, a.to(at::kBFloat16), b.to(at::kBFloat16));
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
    return choice == nullptr ? std::nullopt : choice->of(key_of(p));
  }

  const Tensor& counters_;
  Tensor& scratch_;
};

}  // namespace fastgan::bindings
