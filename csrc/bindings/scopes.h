// Where an op runs. A scope is made from a tensor at the start of a call, is the context that the kernels take (so that
// bce_sum(here, ...) means cpu::bce_sum or cuda::bce_sum), and holds what the device needs for the length of the call:
// the current device, the current stream, memory from torch's allocator. Only this header knows which devices a build
// has; the test build that runs the CUDA kernels on the host (tests/simt/) differs here alone.
#pragma once

#include <torch/library.h>

#include <vector>

#include "../cpu/context.h"
#include "common.h"

#if defined(FASTGAN_SIMT)
#include "../cuda/platform.h"
namespace simt {  // the device that the host model stands for
int device_multiprocessors();
size_t device_shared_bytes();
int device_largest_cluster();
}  // namespace simt
#elif defined(FASTGAN_WITH_CUDA)
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

#include "../cuda/platform.h"
#endif

namespace fastgan::bindings {

#ifndef FASTGAN_SIMT

class CpuScope : public cpu::Context {
 public:
  // Whether the bias gradient comes with the weight gradient rather than with the activation's derivative.
  static constexpr bool bias_with_weight = false;

  explicit CpuScope(const Tensor&) {}
};

#endif

#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)

class CudaScope : public cuda::Context {
 public:
  static constexpr bool bias_with_weight = true;

  explicit CudaScope(const Tensor& like);

  void* scratch(size_t bytes) const override {
    memory_.push_back(at::empty({static_cast<int64_t>(bytes)}, options_));
    return memory_.back().mutable_data_ptr();
  }
  unsigned* counters() const override;

 private:
#ifndef FASTGAN_SIMT
  c10::cuda::CUDAGuard guard_;
  bool is_external_ = false;
#endif
  at::TensorOptions options_;
  mutable std::vector<Tensor> memory_;  // may be freed at the end of the call: torch's allocator keeps stream order
};

#ifdef FASTGAN_SIMT

inline int largest_cluster_on(const Tensor&) { return simt::device_largest_cluster(); }

inline CudaScope::CudaScope(const Tensor& like) : options_(like.options().dtype(at::kByte)) {
  multiprocessors = simt::device_multiprocessors();
  shared_limit = simt::device_shared_bytes();
  largest_cluster = largest_cluster_on(like);
}

inline unsigned* CudaScope::counters() const {
  static thread_local Tensor zeros;
  if (!zeros.defined() || zeros.device() != options_.device())
    zeros = at::zeros({counter_count}, options_.dtype(at::kInt));
  return static_cast<unsigned*>(zeros.mutable_data_ptr());
}

#else

// Where a launch can be of clusters, it can also begin before the one before it ends, which drivers before CUDA 12.3
// cannot capture in a graph.
inline int largest_cluster_of(const cudaDeviceProp& properties) {
  static const int driver = [] {
    int version = 0;
    C10_CUDA_CHECK(cudaDriverGetVersion(&version));
    return version;
  }();
  return properties.major >= 9 && driver >= 12030 ? cuda::max_cluster : 1;
}

inline int largest_cluster_on(const Tensor& like) {
  return largest_cluster_of(*at::cuda::getDeviceProperties(like.device().index()));
}

inline CudaScope::CudaScope(const Tensor& like) : guard_(like.device()), options_(like.options().dtype(at::kByte)) {
  const cudaDeviceProp& properties = *at::cuda::getDeviceProperties(like.device().index());
  const c10::cuda::CUDAStream current = at::cuda::getCurrentCUDAStream(like.device().index());
  stream = current;
  // Torch's id of such a stream is its handle; of the default stream both are zero.
  is_external_ = stream != nullptr && reinterpret_cast<intptr_t>(stream) == static_cast<intptr_t>(current.id());
  multiprocessors = properties.multiProcessorCount;
  shared_limit = properties.sharedMemPerBlockOptin;
  largest_cluster = largest_cluster_of(properties);
}

// Work on one stream runs in order, so a stream's kernels can take turns at its counters. A captured graph may be
// replayed on any stream, beside others: it has counters of its own, set to zero in the graph; and so has a call on a
// stream that is not torch's, which may be destroyed with work under way, and whose handle may then be another's. Those
// of a stream of torch's live as long as the process, so they do not come from torch's allocator: its pool of the
// moment may be that of a graph.
inline unsigned* CudaScope::counters() const {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone || is_external_) {
    memory_.push_back(at::zeros({counter_count}, options_.dtype(at::kInt)));
    return static_cast<unsigned*>(memory_.back().mutable_data_ptr());
  }
  static std::mutex mutex;
  static auto& of_stream = *new std::map<std::pair<int, cudaStream_t>, unsigned*>;
  const std::lock_guard lock(mutex);
  unsigned*& counters = of_stream[{options_.device().index(), stream}];
  if (counters == nullptr) {
    // Another thread may be capturing meanwhile.
    const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
    C10_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&counters), counter_count * sizeof(unsigned)));
    C10_CUDA_CHECK(cudaMemsetAsync(counters, 0, counter_count * sizeof(unsigned), stream));
  }
  return counters;
}

#endif
#endif

}  // namespace fastgan::bindings

// FASTGAN_KERNELS(register_kernels) calls `template <class Scope> void register_kernels(torch::Library&)` for each
// device of this build. FASTGAN_EACH_SCOPE(X) expands X(Scope) for each.
#if defined(FASTGAN_SIMT)
#define FASTGAN_EACH_SCOPE(X) X(CudaScope)
#define FASTGAN_KERNELS(f)                                         \
  TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CPU, m) { f<CudaScope>(m); } \
  TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, PrivateUse1, m) { f<CudaScope>(m); }
#elif defined(FASTGAN_WITH_CUDA)
#define FASTGAN_EACH_SCOPE(X) X(CpuScope) X(CudaScope)
#define FASTGAN_KERNELS(f)                                        \
  TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CPU, m) { f<CpuScope>(m); } \
  TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CUDA, m) { f<CudaScope>(m); }
#else
#define FASTGAN_EACH_SCOPE(X) X(CpuScope)
#define FASTGAN_KERNELS(f) \
  TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CPU, m) { f<CpuScope>(m); }
#endif
