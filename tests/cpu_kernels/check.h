// What the checks of the CPU's kernels share. They need neither torch nor Python, so that they also run where PyTorch
// is not: built for another processor, under its emulator. Each calls kernels and holds what they make against a plain
// loop in float64, within the bounds of bounded.h.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bounded.h"

namespace checks {

using fastgan::Bounded;
using fastgan::Sum;
using Numbers = std::vector<Bounded>;

// Of one check: what was compared and failed, and the largest error as a share of its bound.
struct Tally {
  int64_t compared = 0, failed = 0;
  double largest = 0;
};
inline Tally tally;

inline void fail(const std::string& what) {
  if (++tally.failed <= 10) std::printf("FAILED: %s\n", what.c_str());
}

template <class T>
const char* name_of() {
  if constexpr (std::is_same_v<T, float>) return "float";
  if constexpr (std::is_same_v<T, double>) return "double";
  if constexpr (std::is_same_v<T, fastgan::bfloat16>) return "bfloat16";
  return "float16";
}

template <class F>
void for_each_type(const F& f) {
  f(float{});
  f(double{});
  f(fastgan::bfloat16{});
  f(fastgan::float16{});
}

// Set anew for each check, so that what one compares does not hang on the others.
inline uint64_t random_state;

// n elements from low to high, the same on every machine; exactly so much memory.
template <class T>
std::vector<T> random(int64_t n, double low = -2, double high = 2) {
  std::vector<T> all(n);
  for (T& element : all) {
    uint64_t& state = random_state;
    state = state * 6364136223846793005u + 1442695040888963407u;
    fastgan::store(&element, fastgan::compute_t<T>(low + (high - low) * double(state >> 11) * std::ldexp(1, -53)));
  }
  return all;
}

// What a kernel reads.
template <class T>
Numbers numbers(const std::vector<T>& all) {
  Numbers exact;
  for (const T& element : all) exact.push_back({double(fastgan::load(&element)), 0});
  return exact;
}

// As T, so that a kernel can be given it.
template <class T>
std::vector<T> rounded_to(const Numbers& all) {
  std::vector<T> rounded(all.size());
  for (size_t i = 0; i < all.size(); ++i) fastgan::store(&rounded[i], fastgan::compute_t<T>(all[i].value));
  return rounded;
}

// Holds what a kernel has made against what it must be. A bound that leaves the leading bits open says nothing: that
// fails too, and so do inputs at a jump.
template <class T>
void expect(const std::vector<T>& made, const Numbers& wanted, const std::string& what) {
  const std::string about = std::string(name_of<T>()) + " " + what;
  if (made.size() != wanted.size()) return fail(about + " has another size");
  double largest_value = 0, largest_bound = 0;
  for (size_t i = 0; i < made.size(); ++i) {
    const double value = fastgan::load(&made[i]), bound = wanted[i].error;
    const double error = std::fabs(value - wanted[i].value);
    ++tally.compared;
    if (!(error <= bound))
      fail(about + " [" + std::to_string(i) + "] is " + std::to_string(value) + ", not " +
           std::to_string(wanted[i].value) + " to " + std::to_string(bound));
    if (bound > 0) tally.largest = std::max(tally.largest, error / bound);
    largest_value = std::max(largest_value, std::fabs(wanted[i].value));
    largest_bound = std::max(largest_bound, bound);
  }
  const double open = std::ldexp(1, sizeof(T) == 2 ? -3 : sizeof(T) == 4 ? -7 : -33);
  const double zero = 8 * fastgan::stored<T>({0, Bounded::smallest}).error;
  if (!(largest_bound <= open * largest_value + zero)) fail(about + ": its bound is too wide to say anything");
  if (Bounded::is_at_jump) fail(about + ": an input is at a jump");
  Bounded::is_at_jump = false;
}

// Memory for a kernel, aligned to 64 bytes and zero.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : memory_(new char[bytes + 64]()) {}
  void* data() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64); }

 private:
  std::unique_ptr<char[]> memory_;
};

void check_threads();
void check_losses();
void check_layers();
void check_thin();
void check_networks();
void check_segmented();
void check_step();

}  // namespace checks
