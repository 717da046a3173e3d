// Sums in a fixed order, within a warp, a block and a launch: the same input gives the same bits. No float atomics.
#pragma once

#include "platform.h"

namespace fastgan::cuda {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

// The sum over the warp, in lane 0.
template <class C>
__device__ __forceinline__ C warp_sum(C value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2) value += __shfl_down_sync(all_lanes, value, distance);
  return value;
}

// The sum over the block, in thread 0. All threads of the block call it; threads is their number.
template <int threads, class C>
__device__ __forceinline__ C block_sum(C value) {
  constexpr int warps = threads / warp_size;
  static_assert(threads % warp_size == 0 && warps <= warp_size, "a block of whole warps");
  FASTGAN_SHARED(C[warps], partial);
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  if (warp == 0) value = warp_sum(lane < warps ? partial[lane] : C(0));
  __syncthreads();  // partial may be used again
  return value;
}

// Whether this block is the last of `blocks` that come here. What all of them wrote to global memory before is then its
// to read. All threads of the block call it. The counter is zero before the launch and after it.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
  FASTGAN_SHARED(bool, is_last);
  __threadfence();  // this thread's writes come before the block's ticket
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(counter, 1u) == blocks - 1;
    if (is_last) atomicExch(counter, 0u);
  }
  __syncthreads();
  if (is_last) __threadfence();  // and the others' writes before what is read now
  return is_last;
}

// Finishes a sum over all threads of a launch: *result = scale times the sum of `value`, which the last block makes of
// the sums of all blocks, in their order. partial has room for a sum a block.
template <int threads, class T>
__device__ void store_launch_sum(double value, double scale, double* partial, unsigned* counter, T* result) {
  const double sum = block_sum<threads>(value);
  if (gridDim.x == 1) {
    if (threadIdx.x == 0) store(result, static_cast<compute_t<T>>(sum * scale));
    return;
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!is_last_block(counter, gridDim.x)) return;
  double total = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += threads) total += partial[block];
  total = block_sum<threads>(total);
  if (threadIdx.x == 0) store(result, static_cast<compute_t<T>>(total * scale));
}

}  // namespace fastgan::cuda
