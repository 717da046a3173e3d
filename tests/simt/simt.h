// The host model of CUDA: the words of a kernel, for g++ -std=c++20. See README.md for what is modelled and checked.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

// A function whose own accesses are none of a kernel's.
#define SIMT_ON_THE_HOST __attribute__((no_sanitize("thread")))

namespace simt {

using Site = std::source_location;

// A rule of CUDA that a kernel broke; launch() throws it.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Block;
struct Copies;

// The CUDA thread that is running.
struct Thread {
  dim3 thread_index, block_index, block_dim, grid_dim;
  Block* block = nullptr;
  int number = 0;  // within its block
  Copies* copies = nullptr;
  unsigned char* stack = nullptr;  // of a fiber
  bool has_arrived = false;        // at cluster_arrive(), and not yet come to cluster_wait()
  int in_model = 0;                // over 0 while the model works for it, whose accesses are none of the kernel's
};
inline constinit thread_local Thread* current = nullptr;

// Throws a Fault that names the kernel, the block and the thread.
[[noreturn]] void fault(const std::string& what);

enum class Engine { fibers, threads };
// FASTGAN_SIMT_ENGINE in the environment, until set here.
void set_engine(Engine engine);

// Which blocks run at once, and may wait for each other: all of a cooperative launch, the cluster of those with the
// same x (there is no z), or each alone. And whether over 48 KB of shared memory, static and dynamic, were asked for.
struct Together {
  bool cooperative = false, clustered = false, asks_for_shared = true;
};
void launch(const char* name, dim3 blocks, dim3 threads, size_t shared_bytes, Together together,
            const std::function<void()>& kernel);

// The order that branches of a step leave open, for the counter; launches run one after the other all the same.
using Launches = std::set<size_t>;  // by their places among those that are counted
// What comes next is of a branch, or of the step itself where that is null, and waits for `after` as well.
void continue_branch(const void* branch, const Launches& after = {});
// What the branch's next launch waits for, as yet.
Launches last_launches(const void* branch);

// Shared memory.
unsigned char* dynamic_shared();
void* static_shared_bytes(const void* key, size_t size);
template <class T>
T& static_shared(const void* key) {
  return *static_cast<T*>(static_shared_bytes(key, sizeof(T)));
}
bool is_shared(const void* p, size_t bytes);

// Barriers: of the block, of `threads` threads of it, of the grid, of the cluster.
void block_barrier(const char* what, int id, int threads, Site site);
void grid_barrier(Site site);
void cluster_barrier(Site site);
// Its halves: the meeting is at the wait, and between the two a thread has no business with the others' memory.
void cluster_arrive();
void cluster_wait(Site site);
// Where the cluster's block of that rank has what lies at p in this one's shared memory.
void* peer_shared(void* p, size_t bytes, unsigned rank);

// A warp collective: each lane of the mask brings its argument; the last to come calls all(arguments, mask), with an
// entry a lane, for all of them.
using Collective = void (*)(void* const* arguments, unsigned mask);
void meet_warp(const char* what, unsigned mask, void* argument, Collective all, Site site);

inline int lane() { return current->number % 32; }

template <class T>
struct Shuffle {
  T value;
  int source;
};

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 and 8 bytes");
  struct Exchange {
    T value, result;
    int source;
    const char* what;
  } mine{value, value, source, what};
  meet_warp(
      what, mask, &mine,
      [](void* const* arguments, unsigned mask) {
        for (int l = 0; l < 32; ++l) {
          if ((mask >> l & 1) == 0) continue;
          Exchange& exchange = *static_cast<Exchange*>(arguments[l]);
          if ((mask >> exchange.source & 1) == 0)
            fault(std::string(exchange.what) + " reads lane " + std::to_string(exchange.source) +
                  ", which is not in its mask " + std::to_string(mask));
          exchange.result = static_cast<Exchange*>(arguments[exchange.source])->value;
        }
      },
      site);
  return mine.result;
}

// The result of op, the same for every lane, from the lanes' values.
template <class T, class R, class Op>
R combine(const char* what, unsigned mask, T value, Op, Site site) {
  struct Vote {
    T value;
    R result;
  } mine{value, R{}};
  meet_warp(
      what, mask, &mine,
      [](void* const* arguments, unsigned mask) {
        R result = Op::start;
        for (int l = 0; l < 32; ++l)
          if (mask >> l & 1) result = Op::add(result, static_cast<Vote*>(arguments[l])->value, l);
        for (int l = 0; l < 32; ++l)
          if (mask >> l & 1) static_cast<Vote*>(arguments[l])->result = result;
      },
      site);
  return mine.result;
}

struct Ballot {
  static constexpr unsigned start = 0;
  static unsigned add(unsigned sum, bool value, int lane) { return sum | unsigned{value} << lane; }
};
template <class T>
struct Sum {
  static constexpr T start = 0;
  static T add(T sum, T value, int) { return sum + value; }
};

void fence();
void block_fence();

}  // namespace simt

#define threadIdx (::simt::current->thread_index)
#define blockIdx (::simt::current->block_index)
#define blockDim (::simt::current->block_dim)
#define gridDim (::simt::current->grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads(simt::Site site = simt::Site::current()) { simt::block_barrier("__syncthreads", 0, 0, site); }
inline void named_barrier(int id, int threads, simt::Site site = simt::Site::current()) {
  simt::block_barrier("named_barrier", id, threads, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::current()) {
  simt::meet_warp("__syncwarp", mask, nullptr, [](void* const*, unsigned) {}, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, simt::Site site = simt::Site::current()) {
  return simt::shuffle("__shfl_sync", mask, value, source & 31, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, simt::Site site = simt::Site::current()) {
  const int source = simt::lane() + delta;
  return simt::shuffle("__shfl_down_sync", mask, value, source > 31 ? simt::lane() : source, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, simt::Site site = simt::Site::current()) {
  const int source = simt::lane() - delta;
  return simt::shuffle("__shfl_up_sync", mask, value, source < 0 ? simt::lane() : source, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, simt::Site site = simt::Site::current()) {
  return simt::shuffle("__shfl_xor_sync", mask, value, simt::lane() ^ bits, site);
}
inline unsigned __ballot_sync(unsigned mask, bool value, simt::Site site = simt::Site::current()) {
  return simt::combine<bool, unsigned>("__ballot_sync", mask, value, simt::Ballot{}, site);
}
inline bool __any_sync(unsigned mask, bool value, simt::Site site = simt::Site::current()) {
  return simt::combine<bool, unsigned>("__any_sync", mask, value, simt::Ballot{}, site) != 0;
}
inline bool __all_sync(unsigned mask, bool value, simt::Site site = simt::Site::current()) {
  return simt::combine<bool, unsigned>("__all_sync", mask, value, simt::Ballot{}, site) == mask;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::current()) {
  return simt::combine<unsigned, unsigned>("__reduce_add_sync", mask, value, simt::Sum<unsigned>{}, site);
}

// Atomics order nothing by themselves; fences do.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*p).fetch_add(value, std::memory_order_relaxed);
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*p).exchange(value, std::memory_order_relaxed);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*p).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  T old = std::atomic_ref<T>(*p).load(std::memory_order_relaxed);
  while (old < value && !std::atomic_ref<T>(*p).compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::block_fence(); }
