// A whole step on a CUDA device: csrc/cuda/step.h over the engine's tensors, captured as one graph.
//
// What changes from step to step lies on the device, at places that stay: the inputs are copied to tensors of the
// engine's own, and what the updates depend on (learning rates, counts of steps) is set there when it has changed. So a
// step is the copies of the inputs, a replay and a copy of four numbers; the host waits for nothing.
#pragma once

#include <memory>
#include <tuple>

#include "../cuda/adam.h"
#include "../cuda/step.h"
#include "layer_path.h"
#include "scopes.h"
#include "step_networks.h"

#ifdef FASTGAN_WITH_CUDA
#include <ATen/cuda/CUDAGraph.h>
#endif

namespace fastgan::bindings {

// A step's counters and scratch memory are its own, at places that stay, for the captured graph. Its launches run one
// after the other and ask for scratch memory once each, so they take turns at it.
class StepScope : public CudaScope {
 public:
  StepScope(const Tensor& like, const Tensor& counters, Tensor& scratch)
      : CudaScope(like), counters_(counters), scratch_(scratch) {}

  unsigned* counters() const override { return static_cast<unsigned*>(counters_.mutable_data_ptr()); }
  void* scratch(size_t bytes) const override {
    if (!scratch_.defined() || scratch_.numel() < int64_t(bytes))
      scratch_ = at::empty({int64_t(bytes)}, counters_.options().dtype(at::kByte));
    return scratch_.mutable_data_ptr();
  }

  // Large products are torch's, as those of the layers' ops are; but for bfloat16 of float operands, which it has not.
  bool exact = true;
  bool prefers_library(int64_t m, int64_t n, int64_t k, size_t element) const override {
    return exact && !is_tiled(m, n, k, element == sizeof(float) ? at::kFloat : at::kDouble);
  }
  void product(const cuda::LibraryProduct<float>& p) const override { multiply(p); }
  void product(const cuda::LibraryProduct<double>& p) const override { multiply(p); }

 private:
  template <class T>
  void multiply(const cuda::LibraryProduct<T>& p) const {
    const at::TensorOptions options = counters_.options().dtype(sizeof(T) == sizeof(float) ? at::kFloat : at::kDouble);
    const auto view = [&](const T* data, int64_t rows, int64_t cols, int64_t row, int64_t col) {
      return at::from_blob(const_cast<T*>(data), {rows, cols}, {row, col}, options);
    };
    Tensor c = view(p.c, p.m, p.n, p.n, 1);
    at::mm_out(c, view(p.a, p.m, p.k, p.a_row, p.a_col), view(p.b, p.k, p.n, p.b_row, p.b_col));
  }

  const Tensor& counters_;
  Tensor& scratch_;
};

class CudaStep {
 public:
  explicit CudaStep(StepNetworks& networks) : networks_(networks) {}

  template <class T>
  void run(const StepSettings& settings, const StepInputs& inputs, const std::vector<double>& hyperparameters,
           const std::vector<Tensor>& learning_rates, bool draws, const Tensor& result) {
    static_assert(sizeof(StepSums<T>) == 4 * sizeof(T), "the four statistics");
    reserve_updates<T>();
    StepScope here(networks_.first(), counters_, scratch_);
    here.exact = !settings.bf16;
    here_ = &here;
    options_.rounding = settings.bf16  ? cuda::Rounding::bf16
                        : allow_tf32() ? cuda::Rounding::tf32
                                       : cuda::Rounding::none;
    options_.narrow = prefers_narrow(inputs.batch());
    set_updates(settings, hyperparameters, learning_rates);
    sums_ = sums_tensor_.mutable_data_ptr();
#ifdef FASTGAN_WITH_CUDA
    replay_or_run<T>(settings, inputs, draws);
#else
    if (draws) inputs.noise.normal_();
    run_step<T>(*this, networks_, settings, inputs);
#endif
    result.copy_(sums_tensor_, /*non_blocking=*/true);
    here_ = nullptr;
  }

  void prepare(int network) {
    const int64_t begin = network == generator_index ? 0 : generator_parameters_;
    const int64_t end = network == generator_index ? generator_parameters_ : int64_t(updates_.size());
    if (networks_.first().scalar_type() == at::kDouble)
      prepare_adam(*here_, due() + begin, int(end - begin), steps<double>() + begin);
    else
      prepare_adam(*here_, due() + begin, int(end - begin), steps<float>() + begin);
  }

  template <class T>
  void reserve(const StepProblem<T>& problem) {
    const int64_t needed = int64_t(cuda::step_workspace(*here_, problem));
    if (workspace_.defined() && workspace_.numel() >= needed) return;
    workspace_ = Tensor();  // before the new one is made
    workspace_ = at::empty({needed}, bytes());
  }

  template <class T>
  void discriminator_step(const StepProblem<T>& problem) {
    cuda::discriminator_step(*here_, problem, workspace_.mutable_data_ptr(), static_cast<StepSums<T>*>(sums_),
                             options_);
  }

  template <class T>
  void generator_step(const StepProblem<T>& problem, bool fresh) {
    cuda::generator_step(*here_, problem, workspace_.mutable_data_ptr(), fresh, static_cast<StepSums<T>*>(sums_),
                         options_);
  }

 private:
  // An updated parameter, and what the device holds of it.
  struct Update {
    Parameter* parameter;
    cuda::AdamDue due;
    double steps_done;  // on the device; negative before it is set
    bool own_count;     // its `step` is elsewhere, and counted here as well
  };

  at::TensorOptions bytes() const { return networks_.first().options().dtype(at::kByte); }
  cuda::AdamDue* due() const { return static_cast<cuda::AdamDue*>(due_.mutable_data_ptr()); }
  template <class T>
  AdamStep<T>* steps() const {
    return static_cast<AdamStep<T>*>(steps_.mutable_data_ptr());
  }

  template <class T>
  void reserve_updates() {
    if (due_.defined()) return;
    for (Network& network : networks_.networks) {
      network.for_parameters([&](Parameter& parameter) {
        if (parameter.group < 0) return;
        const bool here =
            parameter.step.device() == parameter.value.device() && parameter.step.scalar_type() == at::kFloat;
        updates_.push_back({&parameter, {}, -1, !here});
      });
      if (&network == networks_.networks) generator_parameters_ = int64_t(updates_.size());
    }
    const int64_t count = int64_t(updates_.size());
    due_ = at::empty({count * int64_t(sizeof(cuda::AdamDue))}, bytes());
    steps_ = at::empty({count * int64_t(sizeof(AdamStep<T>))}, bytes());
    counts_ = at::empty({count}, networks_.first().options().dtype(at::kFloat));
    counters_ = at::zeros({cuda::Context::counter_count}, networks_.first().options().dtype(at::kInt));
    sums_tensor_ = at::zeros({4}, networks_.first().options());
    for (int64_t k = 0; k < count; ++k) {
      Update& update = updates_[k];
      update.due.step =
          update.own_count ? mutable_data<float>(counts_) + k : mutable_data<float>(update.parameter->step);
      update.parameter->device_step = steps<T>() + k;
    }
  }

  // Sets what the coming updates depend on, where it is not as it was, and counts them where the counts are elsewhere.
  void set_updates(const StepSettings& settings, const std::vector<double>& hyperparameters,
                   const std::vector<Tensor>& learning_rates) {
    std::vector<cuda::AdamDue> list;
    std::vector<double> counts;
    bool changed = false;
    for (size_t k = 0; k < updates_.size(); ++k) {
      Update& update = updates_[k];
      const double* numbers = hyperparameters.data() + update.parameter->group * numbers_of_a_group;
      const Tensor& rate = learning_rates[update.parameter->group];
      cuda::AdamDue now{adam_options(numbers), numbers[0], rate.defined() ? data<float>(rate) : nullptr,
                        update.due.step};
      double set = -1;
      if (update.own_count) {
        const double done = update.parameter->steps_done();
        if (done != update.steps_done) set = done;
        const bool in_generator = int64_t(k) < generator_parameters_;
        update.steps_done = done + (in_generator ? 1 : double(settings.d_steps));
        update.parameter->set_steps_done(update.steps_done);
      }
      changed = changed || set >= 0 || !same(now, update.due) || !is_set_;
      update.due = now;
      list.push_back(now), counts.push_back(set);
    }
    if (changed) set_adam(*here_, list.data(), counts.data(), int(list.size()), due());
    is_set_ = true;
  }

  static bool same(const cuda::AdamDue& a, const cuda::AdamDue& b) {
    const auto all = [](const cuda::AdamDue& d) {
      const AdamOptions& o = d.options;
      return std::make_tuple(o.beta1, o.beta2, o.weight_decay, o.eps, o.amsgrad, o.maximize, o.decoupled_weight_decay,
                             d.learning_rate, d.learning_rate_tensor, d.step);
    };
    return all(a) == all(b);
  }

#ifdef FASTGAN_WITH_CUDA
  // What a captured graph holds for.
  using Key = std::tuple<int64_t, int64_t, int64_t, bool, cuda::Rounding, LayerPath>;

  // The first step of a kind runs launch by launch, so that every kernel is loaded and all memory is there; the second
  // is captured.
  template <class T>
  void replay_or_run(const StepSettings& settings, const StepInputs& given, bool draws) {
    const Key key{given.batch(), given.real.size(0), given.labels.defined() ? given.labels.size(0) : 0,
                  draws,         options_.rounding,  layer_path()};
    const auto copied = [](Tensor& own, const Tensor& from) {
      if (!from.defined()) return;
      if (!own.defined() || own.sizes() != from.sizes()) own = at::empty(from.sizes(), from.options());
      own.copy_(from, /*non_blocking=*/true);
    };
    const bool is_new = !(has_run_ && key == key_);
    if (is_new) graph_.reset();
    copied(inputs_.real, given.real), copied(inputs_.labels, given.labels);
    if (!draws) copied(inputs_.noise, given.noise);
    if (draws && (!inputs_.noise.defined() || inputs_.noise.sizes() != given.noise.sizes()))
      inputs_.noise = at::empty(given.noise.sizes(), given.noise.options());
    const auto all = [&] {
      if (draws) inputs_.noise.normal_();
      run_step<T>(*this, networks_, settings, inputs_);
    };
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    C10_CUDA_CHECK(cudaStreamIsCapturing(here_->stream, &capturing));
    if (is_new || capturing != cudaStreamCaptureStatusNone) {  // or within a graph of the caller's
      key_ = key, has_run_ = true;
      return all();
    }
    if (graph_ == nullptr) {
      auto graph = std::make_unique<at::cuda::CUDAGraph>();
      const StepScope* const outer = here_;
      {
        const c10::cuda::CUDAStreamGuard on(c10::cuda::getStreamFromPool(false, networks_.first().device().index()));
        StepScope here(networks_.first(), counters_, scratch_);  // on the stream of the capture
        here.exact = outer->exact;
        here_ = &here;
        graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
        try {
          all();
        } catch (...) {
          here_ = outer;
          graph->capture_end();
          throw;
        }
        graph->capture_end();
      }
      here_ = outer;
      graph_ = std::move(graph);
    }
    graph_->replay();
  }

  Key key_{};
  bool has_run_ = false;
  StepInputs inputs_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
#endif

  StepNetworks& networks_;
  const StepScope* here_ = nullptr;
  cuda::StepOptions options_;
  std::vector<Update> updates_;  // the generator's first
  int64_t generator_parameters_ = 0;
  bool is_set_ = false;
  Tensor due_, steps_, counts_, counters_, scratch_, sums_tensor_, workspace_;
  void* sums_ = nullptr;
};

}  // namespace fastgan::bindings
