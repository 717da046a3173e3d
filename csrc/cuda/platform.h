// What a kernel sees of CUDA: nvcc's own words, or those of the host model (tests/simt/), which runs the same source
// with g++ where FASTGAN_SIMT is defined. Everything that touches a real stream or device from this folder is here.
// Each kernel's source reads this, so it includes little.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef FASTGAN_SIMT
#include <functional>
#include <vector>

#include "simt.h"
#else
#include <cuda_runtime.h>
#endif

#include "../core/scalar.h"

namespace fastgan::cuda {

// c = a b, m x n sums of k terms: element (i, j) of a is a[i * a_row + j * a_col], of b likewise; c is contiguous.
template <class T>
struct LibraryProduct {
  int64_t m, n, k;
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row, b_col;
  T* c;
};

// A product of a layer, by what it is of. m, n, k: as of LibraryProduct.
enum class ProductRole : int { forward, input_gradient, weight_gradient };
struct ProductShape {
  ProductRole role;
  int64_t m, n, k;
};

// What a launcher needs to know of the call: where it runs, and where it may put what it needs meanwhile. The bindings
// make one a call.
class Context {
 public:
  // Most blocks of one launch that can take turns at `counters`.
  static constexpr int64_t counter_count = 4096;

  virtual ~Context() = default;
  // Uninitialised device memory, aligned to 256 bytes, good until the work launched with this context is done.
  virtual void* scratch(size_t bytes) const = 0;
  // counter_count zeros in device memory that no other work uses at the same time. A kernel leaves zeros behind.
  virtual unsigned* counters() const = 0;

  // Whether a product of elements of so many bytes is faster by a library than by the kernels here; and that product.
  virtual bool prefers_library(const ProductShape&, size_t) const { return false; }
  virtual void product(const LibraryProduct<float>&) const {}
  virtual void product(const LibraryProduct<double>&) const {}
  // Is told of each product of a step that is one launch of its own, and whether it is the library's.
  virtual void took(const ProductShape&, bool) const {}
  // In how many parts a product of the kernels here shares out k; 0 where that is theirs to say.
  virtual int64_t splits(const ProductShape&) const { return 0; }

  // A branch: work of its context comes after all that this one was given so far, and may run beside what this one is
  // given afterwards, until join(). There are a few of them, which take turns; without any, work runs in one order.
  virtual const Context& branch() const { return *this; }
  // What comes next comes after the work of all branches.
  virtual void join() const {}

  cudaStream_t stream = nullptr;
  int multiprocessors = 1;
  int largest_cluster = 1;          // most blocks of a cluster, on this device
  size_t shared_limit = 48 * 1024;  // bytes of dynamic shared memory that a block may have

#ifdef FASTGAN_SIMT
  // Where it is not null, work is put there, to run as late as a branch's may.
  std::vector<std::function<void()>>* later = nullptr;
#endif
};

// More dynamic shared memory than so many bytes is asked for: with what else a block has it may be over 48 KB, which no
// kernel gets unasked.
constexpr size_t unasked_shared_bytes = 32 * 1024;

constexpr int max_cluster = 8;  // blocks, on every device that has clusters

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;   // of dynamic shared memory
  bool cooperative = false;  // all blocks are resident at once, and may call grid_barrier()
  bool clustered = false;    // the blocks with the same x are a cluster: cluster_barrier(), peer_shared(); z is 1
  bool overlaps = false;     // may begin before the launch before it ends: the kernel calls wait_for_launch_before()
};

#ifdef FASTGAN_SIMT

template <class... Parameters, class... Arguments>
void launch(const Context& context, const char* name, void (*kernel)(Parameters...), const Grid& grid,
            Arguments... arguments) {
  if (grid.cooperative && grid.blocks.x > static_cast<unsigned>(context.multiprocessors))
    throw simt::Fault(std::string("simt: kernel ") + name +
                      ": a cooperative launch has more blocks than are resident.");
  const auto run = [=]() {
    simt::launch(name, grid.blocks, grid.threads, grid.shared_bytes,
                 {.cooperative = grid.cooperative,
                  .clustered = grid.clustered,
                  .asks_for_shared = grid.shared_bytes > unasked_shared_bytes},
                 [&]() SIMT_ON_THE_HOST { kernel(Parameters(arguments)...); });
  };
  if (context.later != nullptr)
    context.later->push_back(run);
  else
    run();
}

// How many blocks of a cooperative launch can be resident.
template <class... Parameters>
int64_t resident_blocks(const Context& context, const char*, void (*)(Parameters...), const Grid&) {
  return context.multiprocessors;
}

// How many blocks of a cluster a kernel may have; where that is more than one, it may overlap the launch before it too.
template <class... Parameters>
int cluster_limit(const Context& context, const char*, void (*)(Parameters...)) {
  return context.largest_cluster;
}

#else

// Throws a sentence about the kernel of this name, where there is an error.
void check(cudaError_t error, const char* name);

template <class... Parameters, class... Arguments>
void launch(const Context& context, const char* name, void (*kernel)(Parameters...), const Grid& grid,
            Arguments... arguments) {
  if (grid.shared_bytes > unasked_shared_bytes)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared_bytes)),
          name);
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = context.stream;
  config.attrs = attributes;
  if (grid.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  if (grid.clustered) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {1, grid.blocks.y, 1};
  }
  if (grid.overlaps) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

template <class... Parameters>
int64_t resident_blocks(const Context& context, const char* name, void (*kernel)(Parameters...), const Grid& grid) {
  if (grid.shared_bytes > unasked_shared_bytes)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared_bytes)),
          name);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(grid.threads.x),
                                                      grid.shared_bytes),
        name);
  return static_cast<int64_t>(blocks) * context.multiprocessors;
}

// How many blocks of a cluster a kernel may have; where that is more than one, it may overlap the launch before it too.
// Both are of compute capability 9.0 on, of the device and of what the kernel is compiled for.
template <class... Parameters>
int cluster_limit(const Context& context, const char* name, void (*kernel)(Parameters...)) {
  if (context.largest_cluster <= 1) return 1;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), name);
  return attributes.ptxVersion >= 90 ? context.largest_cluster : 1;
}

#endif

template <class T>
using Itself = T;

}  // namespace fastgan::cuda

// FASTGAN_SHARED(float[32], name): a static __shared__ variable.
#ifdef FASTGAN_SIMT
#define FASTGAN_SHARED(type, name)  \
  static const char name##_key = 0; \
  ::fastgan::cuda::Itself<type>& name = ::simt::static_shared<::fastgan::cuda::Itself<type>>(&name##_key)
#else
#define FASTGAN_SHARED(type, name) __shared__::fastgan::cuda::Itself<type> name
#endif

namespace fastgan::cuda {

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ inline unsigned char* dynamic_shared() {
#ifdef FASTGAN_SIMT
  return simt::dynamic_shared();
#else
  extern __shared__ __align__(16) unsigned char fastgan_dynamic_shared[];
  return fastgan_dynamic_shared;
#endif
}

}  // namespace fastgan::cuda
