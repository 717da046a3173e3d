// Which kernels have been found right on which device, as fastgan/gate.py says: what direct calls, which do not pass
// there, ask for themselves.
#pragma once

#include <array>
#include <atomic>
#include <string>

#include "common.h"

namespace fastgan::bindings {

enum class Verified { gan_losses, layers };
inline constexpr std::array<const char*, 2> verified_names = {"gan_losses", "layers"};

// A bit for each family and dtype, by device; of devices beyond these none counts as verified.
inline constexpr int most_devices = 64;
inline std::atomic<uint8_t> verified_bits[2][most_devices];

inline uint8_t verified_bit(Verified family, at::ScalarType dtype) {
  constexpr std::array<at::ScalarType, 4> dtypes = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
  for (size_t i = 0; i < dtypes.size(); ++i)
    if (dtypes[i] == dtype) return static_cast<uint8_t>(1 << (4 * static_cast<int>(family) + static_cast<int>(i)));
  return 0;
}

inline std::atomic<uint8_t>* verified_of(const at::Device& device) {
  const int index = device.has_index() ? device.index() : 0;
  if ((!device.is_cpu() && !device.is_cuda()) || index >= most_devices) return nullptr;
  return &verified_bits[device.is_cuda()][index];
}

inline bool is_verified(Verified family, const Tensor& t) {
  const std::atomic<uint8_t>* bits = verified_of(t.device());
  return bits != nullptr && (bits->load(std::memory_order_relaxed) & verified_bit(family, t.scalar_type())) != 0;
}

// Of a family that has no direct calls nothing is noted.
inline void set_verified(const std::string& name, const at::Device& device, at::ScalarType dtype, bool verified) {
  std::atomic<uint8_t>* bits = verified_of(device);
  for (size_t i = 0; bits != nullptr && i < verified_names.size(); ++i) {
    if (name != verified_names[i]) continue;
    const uint8_t bit = verified_bit(static_cast<Verified>(i), dtype);
    verified ? bits->fetch_or(bit) : bits->fetch_and(static_cast<uint8_t>(~bit));
  }
}

}  // namespace fastgan::bindings
