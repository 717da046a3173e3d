// Loops over elements in 16-byte vectors, several of them in flight a thread. Memory that is not aligned to 16 bytes,
// and the ragged end, are read and written element by element.
#pragma once

#include <algorithm>

#include "ptx.h"

namespace fastgan::cuda {

constexpr int elementwise_threads = 256;

// Elements a vector: as many as 16 bytes hold.
template <class T>
constexpr int vector_length = 16 / sizeof(T);

// Vectors in flight a thread, for each stream of memory.
constexpr int vectors_in_flight = 2;

// A loop over n elements is shared out as this many blocks: enough for every multiprocessor to be full.
template <class T>
unsigned elementwise_blocks(const Context& context, int64_t n) {
  const int64_t a_block = int64_t{elementwise_threads} * vector_length<T> * vectors_in_flight;
  return static_cast<unsigned>(
      std::clamp<int64_t>((n + a_block - 1) / a_block, 1, int64_t{8} * context.multiprocessors));
}

template <class T>
Grid elementwise_grid(const Context& context, int64_t n) {
  return {dim3(elementwise_blocks<T>(context, n)), dim3(elementwise_threads)};
}

template <class... Pointers>
bool all_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Elements i ... i + length - 1 of memory of n elements, in the type of arithmetic; zeros past the end.
template <class T, int length>
__device__ __forceinline__ void load_elements(const T* p, int64_t i, int64_t n, bool aligned,
                                              compute_t<T> (&out)[length]) {
  constexpr int pieces = length * sizeof(T) / 16;
  if (aligned && pieces > 0 && i + length <= n) {
    union {
      Bytes16 bytes[pieces > 0 ? pieces : 1];
      T elements[length];
    } vector;
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) vector.bytes[piece] = load_16(p + i + piece * (16 / sizeof(T)));
#pragma unroll
    for (int k = 0; k < length; ++k) out[k] = load(&vector.elements[k]);
    return;
  }
#pragma unroll
  for (int k = 0; k < length; ++k) out[k] = i + k < n ? load(p + i + k) : compute_t<T>(0);
}

template <class T, int length>
__device__ __forceinline__ void store_elements(T* p, int64_t i, int64_t n, bool aligned,
                                               const compute_t<T> (&values)[length]) {
  constexpr int pieces = length * sizeof(T) / 16;
  if (aligned && pieces > 0 && i + length <= n) {
    union {
      Bytes16 bytes[pieces > 0 ? pieces : 1];
      T elements[length];
    } vector;
#pragma unroll
    for (int k = 0; k < length; ++k) store(&vector.elements[k], values[k]);
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) store_16(p + i + piece * (16 / sizeof(T)), vector.bytes[piece]);
    return;
  }
#pragma unroll
  for (int k = 0; k < length; ++k)
    if (i + k < n) store(p + i + k, values[k]);
}

// Calls body(i) for the first index of each vector of `length` elements that falls to this thread.
template <int length, class Body>
__device__ __forceinline__ void for_vectors(int64_t n, const Body& body) {
  const int64_t stride = int64_t{gridDim.x} * elementwise_threads * length;
  for (int64_t i = (int64_t{blockIdx.x} * elementwise_threads + threadIdx.x) * length; i < n; i += stride) body(i);
}

}  // namespace fastgan::cuda
