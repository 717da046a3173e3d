// What the checks of the kernels share. They need neither torch nor Python, so that they run under every sanitizer:
// each calls a launcher on exactly sized memory and holds the result against a plain loop in double.
#pragma once

#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/core/activation.h"
#include "../../csrc/cuda/platform.h"

namespace checks {

// Counts what failed; main returns it.
extern int failures;

// Whether to make do with one case a kernel: under ThreadSanitizer every launch is slow.
extern bool few;

inline void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// A device of the host model: memory of exactly the bytes asked for, counters that must be zero again.
class Context : public fastgan::cuda::Context {
 public:
  explicit Context(int processors = 4) : counters_(counter_count, 0u) {
    multiprocessors = processors;
    shared_limit = 227 * 1024;
    largest_cluster = fastgan::cuda::max_cluster;
  }
  ~Context() override {
    for (const unsigned counter : counters_) expect(counter == 0, "a counter is left at zero");
  }
  void* scratch(size_t bytes) const override {
    memory_.push_back(std::make_unique<char[]>(bytes));
    return memory_.back().get();
  }
  unsigned* counters() const override { return counters_.data(); }

 private:
  mutable std::vector<std::unique_ptr<char[]>> memory_;
  mutable std::vector<unsigned> counters_;
};

// n elements; `offset` of them come before, so that the rest is not aligned to 16 bytes.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n, int offset = 0) : n_(n), offset_(offset), memory_(n + offset) {}
  T* data() { return memory_.data() + offset_; }
  const T* data() const { return memory_.data() + offset_; }
  int64_t size() const { return n_; }
  double operator[](int64_t i) const { return fastgan::load(data() + i); }

 private:
  int64_t n_;
  int offset_;
  std::vector<T> memory_;
};

// Each of them has the same data, alone and after others.
inline int checks_begun = 0;

template <class T>
Buffer<T> random(int64_t n, double low = -2, double high = 2, int offset = 0) {
  static std::mt19937 generator(7);
  static int seeded_for = checks_begun;
  if (seeded_for != checks_begun) generator.seed(7);
  seeded_for = checks_begun;
  std::uniform_real_distribution<double> distribution(low, high);
  Buffer<T> buffer(n, offset);
  for (int64_t i = 0; i < n; ++i)
    fastgan::store(buffer.data() + i, static_cast<fastgan::compute_t<T>>(distribution(generator)));
  return buffer;
}

// How far a result of T may be from the exact one, relative to the terms that it is a sum of.
template <class T>
constexpr double tolerance = sizeof(T) == 8   ? 1e-13
                             : sizeof(T) == 4 ? 2e-6
                                              : 1e-2;

inline void expect_close(double value, double exact, double scale, double relative, const std::string& what) {
  const double error = std::fabs(value - exact);
  expect(error <= relative * std::max(1.0, scale),
         what + ": " + std::to_string(value) + " is not " + std::to_string(exact));
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

// Of an activation in double, by the definitions of csrc/core/.
inline double apply(fastgan::ActivationArguments a, double z) {
  double value = 0;
  fastgan::with_activation(a.activation, [&](auto act) { value = decltype(act)::value(z, a.negative_slope); });
  return value;
}
inline double derivative(fastgan::ActivationArguments a, double saved, int order) {
  double value = 0;
  fastgan::with_activation(a.activation, [&](auto act) {
    using A = decltype(act);
    value = order == 1 ? A::d(saved, a.negative_slope) : A::dd(saved, a.negative_slope);
  });
  return value;
}

void check_core();
void check_losses();
void check_layers();
void check_networks();
void check_adam();
void check_penalties();
void check_segmented();
void check_step();
void check_step_options();

}  // namespace checks
