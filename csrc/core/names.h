// Activations and losses by the names that users give: apart from what kernels include, which each of them would read.
#pragma once

#include <optional>
#include <string_view>

#include "activation.h"
#include "gan_losses.h"

namespace fastgan {

inline std::optional<Activation> activation_named(std::string_view name) {
  for (int i = 0; i < activation_count; ++i)
    if (name == activation_names[i]) return static_cast<Activation>(i);
  return std::nullopt;
}

inline std::optional<GanLoss> gan_loss_named(std::string_view name) {
  for (const GanLoss& loss : gan_losses)
    if (name == loss.name) return loss;
  return std::nullopt;
}

}  // namespace fastgan
