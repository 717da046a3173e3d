// A workspace handed out piece by piece, in an order that depends on the problem alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastgan {

// Hands out pieces of the workspace, or, without a base, only counts what they take. `alignment` is that of the base.
template <size_t alignment>
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(int64_t n) {
    T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (n * sizeof(T) + alignment - 1) / alignment * alignment;
    return at;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace fastgan
