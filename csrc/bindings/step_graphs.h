// What a whole step holds of the process beside its tensors: a word that the device may write, and, on a real device,
// the stream and the random generator that its graphs are captured with.
#pragma once

#include <ATen/ATen.h>

#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "common.h"

#ifdef FASTGAN_WITH_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstdlib>
#include <map>
#include <memory>
#endif

namespace fastgan::bindings {

// A word of the host's that the device may write. Its memory is never given back to torch: work that is on its way
// may still write there.
class HostWord {
 public:
  explicit HostWord(const Tensor& like) {
    const std::lock_guard<std::mutex> lock(mutex());
    if (!unused().empty()) {
      word_ = unused().back();
      unused().pop_back();
    } else {
      word_ = at::empty({1}, at::TensorOptions().dtype(at::kLong).pinned_memory(like.is_cuda()));
    }
    *address() = 0;
  }
  ~HostWord() {
    const std::lock_guard<std::mutex> lock(mutex());
    unused().push_back(word_);
  }
  HostWord(const HostWord&) = delete;
  HostWord& operator=(const HostWord&) = delete;
  int64_t* address() const { return word_.mutable_data_ptr<int64_t>(); }

 private:
  static std::mutex& mutex() {
    static std::mutex only;
    return only;
  }
  static std::vector<Tensor>& unused() {
    static auto* const list = new std::vector<Tensor>;
    return *list;
  }
  Tensor word_;
};

#ifdef FASTGAN_WITH_CUDA

inline bool is_capturing_now() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(at::cuda::getCurrentCUDAStream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

// Whether the calling thread is known to have a cuBLAS handle on a device: each thread has one of its own, which cannot
// be made while a graph is captured.
inline bool& has_library_handle(c10::DeviceIndex device) {
  thread_local std::map<c10::DeviceIndex, bool> has;
  return has[device];
}

// Whether memory can be had while a graph is captured: without torch's caching of it (for compute-sanitizer, say) each
// allocation is the driver's, which refuses it then. Asked as torch asks it.
inline bool can_capture() {
  static const bool caches = std::getenv("PYTORCH_NO_CUDA_MEMORY_CACHING") == nullptr;
  return caches;
}

// A stream that one step alone captures on. Torch has a cuBLAS workspace for each stream, and what is captured writes
// there at each replay: on one of torch's own streams, while others' products there do too. Torch never gives such a
// workspace back, so a step that goes leaves its stream to the next one.
class CaptureStream {
 public:
  explicit CaptureStream(c10::DeviceIndex device) : device_(device) {
    {
      const std::lock_guard<std::mutex> lock(mutex());
      std::vector<Unused>& list = unused();
      for (size_t i = 0; i < list.size(); ++i) {
        if (list[i].device != device) continue;
        stream_ = list[i].stream;
        list[i].last_replay.block(at::cuda::getCurrentCUDAStream(device));
        list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
        return;
      }
    }
    const c10::cuda::CUDAGuard on(device);
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~CaptureStream() {
    try {
      Unused left{device_, stream_, {}};
      if (last_used_) {
        const c10::cuda::CUDAStreamGuard on(*last_used_);
        if (is_capturing_now()) return;  // the stream is not used again
        left.last_replay.record(*last_used_);
      }
      const std::lock_guard<std::mutex> lock(mutex());
      unused().push_back(std::move(left));
    } catch (...) {  // at the end of the process
    }
  }
  CaptureStream(const CaptureStream&) = delete;
  CaptureStream& operator=(const CaptureStream&) = delete;

  // Says where a graph that was captured on it runs.
  void is_replayed_on(c10::cuda::CUDAStream stream) { last_used_ = stream; }

  c10::cuda::CUDAStream get() const { return c10::cuda::getStreamFromExternal(stream_, device_); }

 private:
  struct Unused {
    c10::DeviceIndex device;
    cudaStream_t stream;
    at::cuda::CUDAEvent last_replay;
  };
  static std::mutex& mutex() {
    static std::mutex only;
    return only;
  }
  static std::vector<Unused>& unused() {
    static auto* const list = new std::vector<Unused>;  // outlives the driver's own end
    return *list;
  }

  const c10::DeviceIndex device_;
  cudaStream_t stream_ = nullptr;
  std::optional<c10::cuda::CUDAStream> last_used_;
};

// Captures all(), which draws by `generator`.
//
// While a graph is captured, torch's generator counts what is drawn for the graph alone: others who draw meanwhile, on
// other threads, would be refused. They wait; what is captured draws through another door to the same state.
template <class F>
std::unique_ptr<at::cuda::CUDAGraph> capture(const CaptureStream& stream, std::optional<at::Generator>& generator,
                                             const F& all) {
  struct OwnDoor {
    OwnDoor(std::optional<at::Generator>& own, const at::Generator& shared) : own(own) {
      own = shared.graphsafe_get_state();
    }
    ~OwnDoor() { own.reset(); }
    std::optional<at::Generator>& own;
  };
  auto graph = std::make_unique<at::cuda::CUDAGraph>();
  const c10::cuda::CUDAStream on = stream.get(), outside = at::cuda::getCurrentCUDAStream(on.device_index());
  at::Generator shared = at::cuda::detail::getDefaultCUDAGenerator(on.device_index());
  const std::lock_guard<std::mutex> others_wait(shared.mutex());
  const OwnDoor door(generator, shared);
  // Torch 2.11 has one set of the generator's numbers on the device for all graphs, and writes there, on this stream,
  // before it captures: after the replays that are under way, which still draw by them.
  at::cuda::CUDAEvent replayed;
  replayed.record(outside);
  replayed.block(on);
  const c10::cuda::CUDAStreamGuard guard(on);
  graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  try {
    all();
  } catch (...) {
    try {
      graph->capture_end();
    } catch (...) {  // what went wrong first is what is told
    }
    throw;
  }
  graph->capture_end();
  // And before the replays that come: each sets those numbers again, on its own stream, and what came late would take
  // their place: random numbers of before were drawn a second time.
  at::cuda::CUDAEvent begun;
  begun.record(on);
  begun.block(outside);
  return graph;
}

#endif

}  // namespace fastgan::bindings
