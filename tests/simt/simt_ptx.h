// The host model's PTX: the functions of csrc/cuda/ptx.h, with the fragment layouts of the PTX ISA.
#pragma once

#include <vector>

#include "../../csrc/core/scalar.h"
#include "simt.h"

namespace simt {

void start_copy(void* shared, const void* global, int bytes, int size);
void close_group();
void finish_groups(size_t pending);
void check_aligned(const void* p, size_t alignment, const char* what);
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Site site);

// One lane's fragments.
struct Fragments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};
// d += a b for a warp, of elements that `value` reads from a register: k is 8 (a 32-bit element a register) or 16 (two
// 16-bit ones).
using Element = float (*)(uint32_t reg, int half);
template <int k, Element value>
void multiply_fragments(void* const* arguments, unsigned) {
  float a[16][k], b[k][8];
  constexpr int half_k = k / 2, packed = k == 16 ? 2 : 1;  // elements a register
  for (int l = 0; l < 32; ++l) {
    const auto& f = *static_cast<const Fragments*>(arguments[l]);
    const int group = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < packed; ++e) a[group + r % 2 * 8][t * packed + e + r / 2 * half_k] = value(f.a[r], e);
    for (int r = 0; r < 2; ++r)
      for (int e = 0; e < packed; ++e) b[t * packed + e + r * half_k][group] = value(f.b[r], e);
  }
  for (int l = 0; l < 32; ++l) {
    const auto& f = *static_cast<const Fragments*>(arguments[l]);
    const int group = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r) {
      const int row = group + r / 2 * 8, col = 2 * t + r % 2;
      float sum = 0;
      for (int i = 0; i < k; ++i) sum += a[row][i] * b[i][col];
      f.d[r] += sum;
    }
  }
}
inline float tf32_element(uint32_t reg, int) { return fastgan::float_of(reg & 0xffffe000u); }
inline float bf16_element(uint32_t reg, int half) {
  const fastgan::bfloat16 element{uint16_t(reg >> 16 * half)};
  return fastgan::load(&element);
}
inline float f16_element(uint32_t reg, int half) {
  const fastgan::float16 element{uint16_t(reg >> 16 * half)};
  return fastgan::load(&element);
}

}  // namespace simt

namespace fastgan::cuda {

struct alignas(16) Bytes16 {
  uint32_t word[4];
};
inline Bytes16 load_16(const void* p) {
  simt::check_aligned(p, 16, "a load of 16 bytes");
  return *static_cast<const Bytes16*>(p);
}
inline void store_16(void* p, const Bytes16& value) {
  simt::check_aligned(p, 16, "a store of 16 bytes");
  *static_cast<Bytes16*>(p) = value;
}

using SharedPlace = char*;
inline SharedPlace shared_place(void* p) { return static_cast<char*>(p); }
inline void cp_async_16(void* shared, const void* global, int bytes) { simt::start_copy(shared, global, bytes, 16); }
inline void cp_async_16(void* shared, const void* global) { simt::start_copy(shared, global, 16, 16); }
inline void cp_async_4(void* shared, const void* global, int bytes) { simt::start_copy(shared, global, bytes, 4); }
inline void prefetch(const void*) {}
inline void cp_async_commit() { simt::close_group(); }
template <int pending>
void cp_async_wait() {
  simt::finish_groups(pending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, simt::Site site = simt::Site::current()) {
  simt::load_matrices(r, row, false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, simt::Site site = simt::Site::current()) {
  simt::load_matrices(r, row, true, site);
}

inline uint32_t to_tf32(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinity and NaN
  return (bits + 0x1000u) & 0xffffe000u;
}

inline uint32_t to_bf16_pair(float first, float second) {
  bfloat16 pair[2];
  store(&pair[0], first);
  store(&pair[1], second);
  return uint32_t{pair[0].bits} | uint32_t{pair[1].bits} << 16;
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             simt::Site site = simt::Site::current()) {
  simt::Fragments mine{d, a, b};
  simt::meet_warp("mma.m16n8k8.tf32", 0xffffffffu, &mine, simt::multiply_fragments<8, simt::tf32_element>, site);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              simt::Site site = simt::Site::current()) {
  simt::Fragments mine{d, a, b};
  simt::meet_warp("mma.m16n8k16.bf16", 0xffffffffu, &mine, simt::multiply_fragments<16, simt::bf16_element>, site);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             simt::Site site = simt::Site::current()) {
  simt::Fragments mine{d, a, b};
  simt::meet_warp("mma.m16n8k16.f16", 0xffffffffu, &mine, simt::multiply_fragments<16, simt::f16_element>, site);
}

inline void grid_barrier(simt::Site site = simt::Site::current()) { simt::grid_barrier(site); }

// Launches run one after the other here.
inline void let_next_launch_begin() {}
inline void wait_for_launch_before() {}

inline void cluster_barrier(simt::Site site = simt::Site::current()) { simt::cluster_barrier(site); }
inline void cluster_arrive() { simt::cluster_arrive(); }
inline void cluster_wait(simt::Site site = simt::Site::current()) { simt::cluster_wait(site); }
template <class T>
T* peer_shared(T* own, unsigned rank) {
  return static_cast<T*>(simt::peer_shared(own, sizeof(T), rank));
}

}  // namespace fastgan::cuda
