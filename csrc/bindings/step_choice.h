// Which of several ways, that give the same results up to rounding, a step of one size of batch takes.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace fastgan::bindings {

// A product of a layer: its role (cuda/platform.h), m, n and k.
using ProductKey = std::array<int64_t, 4>;

// What is not said is as layer_path.h has it.
struct StepChoice {
  static constexpr int64_t library = 0, tiled = -1;  // a tiled product in so many parts: 1, 2, ...

  bool composed = false;  // of fused ops under autograd, not by the engine
  // On CUDA:
  std::optional<bool> narrow;
  std::map<ProductKey, int64_t> products;

  std::optional<int64_t> of(const ProductKey& key) const {
    const auto found = products.find(key);
    return found == products.end() ? std::nullopt : std::optional(found->second);
  }
  // Written out, for PyTorch before 2.12 compiles extensions as C++17.
  bool operator==(const StepChoice& other) const {
    return composed == other.composed && narrow == other.narrow && products == other.products;
  }
};

// The choices of an engine. A choice stays where it is for as long as the engine lives, so that its address stands for
// it in the key of a captured graph.
class StepChoices {
 public:
  const StepChoice* of(int64_t batch, bool tf32) const {
    const auto found = current_.find({batch, tf32});
    return found == current_.end() ? nullptr : found->second;
  }

  void set(int64_t batch, bool tf32, const StepChoice& choice) {
    const StepChoice* known = nullptr;
    for (const auto& each : all_)
      if (*each == choice) known = each.get();
    if (known == nullptr) known = all_.emplace_back(std::make_unique<const StepChoice>(choice)).get();
    current_[{batch, tf32}] = known;
  }

 private:
  std::vector<std::unique_ptr<const StepChoice>> all_;
  std::map<std::pair<int64_t, bool>, const StepChoice*> current_;
};

}  // namespace fastgan::bindings
