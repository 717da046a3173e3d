// Values stored with 16 bits, in the type of arithmetic a strip at a time: so a loop over them is compiled for that
// type alone, by all types that compute in it, and not once more for each with its conversions.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace fastgan::cpu {

template <class T>
inline constexpr bool is_converted = !std::is_same_v<T, compute_t<T>>;

constexpr int64_t strip_size = 512;  // a few of them stay in the first-level cache

// f(first, count) for the strips of [begin, end): for all of it where nothing is converted.
template <class T, class F>
FASTGAN_INLINE void for_strips(int64_t begin, int64_t end, const F& f) {
  const int64_t size = is_converted<T> ? strip_size : end - begin;
  for (int64_t first = begin; first < end; first += size) f(first, std::min(size, end - first));
}

// Functions, lest each loop have them within.
template <class T>
[[gnu::noinline]] void load_all(int64_t count, const T* from, compute_t<T>* to) {
  simd_for(0, count, FASTGAN_BODY(i) { to[i] = load(from + i); });
}
template <class T>
[[gnu::noinline]] void store_all(int64_t count, const compute_t<T>* from, T* to) {
  simd_for(0, count, FASTGAN_BODY(i) { store(to + i, from[i]); });
}

template <class T, int64_t size = strip_size>
class Strip {
 public:
  using C = compute_t<T>;
  // The values that lie there.
  const C* read(const T* from, int64_t count) {
    if constexpr (is_converted<T>) {
      load_all(count, from, values_);
      return values_;
    } else {
      return from;
    }
  }
  // Where to leave values that write() is to put there.
  C* place(T* to) {
    if constexpr (is_converted<T>)
      return values_;
    else
      return to;
  }
  void write(T* to, int64_t count) {
    if constexpr (is_converted<T>) store_all(count, values_, to);
  }

 private:
  C values_[is_converted<T> ? size : 1];
};

}  // namespace fastgan::cpu
