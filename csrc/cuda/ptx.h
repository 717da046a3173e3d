// PTX instructions, each behind a named function, so that a kernel reads as CUDA and the host model (tests/simt/) can
// supply its own version. Fragment layouts are those of the PTX ISA, "Matrix multiply-accumulate" (mma.sync), with
// group = lane / 4 and t = lane % 4.
#pragma once

#include "platform.h"

#ifdef FASTGAN_SIMT
#include "simt_ptx.h"
#else

namespace fastgan::cuda {

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

// 16-byte accesses; the address must be a multiple of 16.
__device__ __forceinline__ Bytes16 load_16(const void* p) { return *static_cast<const Bytes16*>(p); }
__device__ __forceinline__ void store_16(void* p, const Bytes16& value) { *static_cast<Bytes16*>(p) = value; }

// A place in shared memory, as the copies below take it: found once, where a kernel copies again and again.
using SharedPlace = uint32_t;
__device__ __forceinline__ SharedPlace shared_place(const void* p) {
  SharedPlace place;
  asm volatile("{\n\t.reg .u64 t;\n\tcvta.to.shared.u64 t, %1;\n\tcvt.u32.u64 %0, t;\n\t}" : "=r"(place) : "l"(p));
  return place;
}

// Through the first-level cache, although it keeps nothing that is wanted again: on an H200 copies of 8 KB in whole
// lines took 202 cycles so and 215 past it (.cg), and with three blocks a multiprocessor 165 and 220 each.
//
// Asynchronous copies to shared memory of 16 (4) bytes, the first `bytes` of them from global memory, the rest zeros.
// Both addresses must be multiples of 16 (4). A copy is done once a later cp_async_wait covers it, and other threads
// see it after a barrier that follows.
__device__ __forceinline__ void cp_async_16(SharedPlace shared, const void* global, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(__cvta_generic_to_global(global)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_16(SharedPlace shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(__cvta_generic_to_global(global))
               : "memory");
}
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes) {
  cp_async_16(shared_place(shared), global, bytes);
}
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, int bytes) {
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(bytes)
      : "memory");
}
// Asks for the line of the second-level cache that has this address in it.
__device__ __forceinline__ void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(global)));
}
// Closes a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's latest groups are under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8, a
// multiple of 16, and gets of matrix i, in r[i], elements (group, 2t) and (group, 2t + 1); of its transpose, with
// _trans.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// float rounded to tf32 (10 bits of mantissa), to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Two floats rounded to bfloat16, to nearest even, in the order that the registers of mma have them: first low.
__device__ __forceinline__ uint32_t to_bf16_pair(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

// d += a b, in float. d is 16x8: d[0..1] (group, 2t..2t+1), d[2..3] (group + 8, 2t..2t+1).
// tf32: a is 16x8: (group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4); b is 8x8: (t, group), (t + 4,
// group).
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// 16-bit: each register holds two neighbours in k. a is 16x16: (group, 2t), (group + 8, 2t), (group, 2t + 8),
// (group + 8, 2t + 8); b is 16x8: (2t, group), (2t + 8, group).
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Of compute capability 9.0 on: where launches overlap (Grid::overlaps), the next one on the stream may begin once all
// blocks of this one have said so, and does nothing that this one could notice until it has waited for the end of this.
__device__ __forceinline__ void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// What the launches before have written is there afterwards.
__device__ __forceinline__ void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Clusters, of compute capability 9.0 on; before, no launch has one.
// Waits for all threads of the cluster; what they wrote to shared and global memory before is seen after. A block must
// not end before the others have read its shared memory.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __trap();
#endif
}
// A barrier in two halves that orders no memory: a thread says that it is done with the others' shared memory, and
// waits until all have said so.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait;" ::: "memory");
#else
  __trap();
#endif
}
// Where the cluster's block of that rank has what `own` is here, in shared memory.
template <class T>
__device__ __forceinline__ T* peer_shared(T* own, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(own), "r"(rank));
  return reinterpret_cast<T*>(peer);
#else
  __trap();
  return own;
#endif
}

}  // namespace fastgan::cuda

#endif
