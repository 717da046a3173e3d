// A whole step on the CPU: csrc/cpu/step.h over the engine's tensors.
#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <memory>
#include <utility>

#include "../cpu/shared_group.h"
#include "../cpu/step.h"
#include "step_networks.h"

namespace fastgan::bindings {

class CpuStep {
 public:
  explicit CpuStep(StepNetworks& networks) : networks_(networks) {}

  // Where not null, seconds of each phase are added up there.
  double* seconds = nullptr;

  // Of so many processes that take each step together, puts the sum over all of them in the place of a tensor.
  std::function<void(const Tensor&)> exchange;
  int64_t processes = 1;
  // Or null: where they all share memory, in which the gradients are then added up as they are applied.
  std::shared_ptr<cpu::SharedGroup> shared;
  std::function<void()> meet;  // in that memory

  // d_loss, g_loss, real_score and fake_score, into `result`.
  template <class T>
  void run(const StepSettings& settings, const StepInputs& inputs, const std::vector<AdamGroup>& groups,
           const Tensor& result) {
    groups_ = &groups;
    result_ = mutable_data<T>(result);
    run_step<T>(*this, networks_, settings, inputs);
  }

  // The steps of Adam that are due, of each parameter of a network.
  void prepare(int network) {
    const Parameter* before = nullptr;
    networks_.networks[network].for_parameters([&](Parameter& parameter) {
      parameter.prepare(*groups_, before);
      before = &parameter;
    });
  }

  template <class T>
  void reserve(const StepProblem<T>& problem) {
    const std::pair<int64_t, int64_t> batch{problem.batch, problem.fake_batch};
    if (workspace_.defined() && workspace_batch_ == batch) return;
    workspace_ = Tensor();  // before the new one is made
    const size_t bytes = step_workspace(here_, with_gradients(problem));
    workspace_ = at::zeros({int64_t(bytes)}, networks_.first().options().dtype(at::kByte));
    workspace_batch_ = batch;
  }

  template <class T>
  void discriminator_step(const StepProblem<T>& problem) {
    void* const workspace = workspace_.mutable_data_ptr();
    if (!exchange) return cpu::discriminator_step(here_, problem, workspace, sums<T>(), seconds);
    const StepProblem<T> own = with_gradients(problem);
    cpu::discriminator_step(here_, own, workspace, sums<T>(), seconds);
    StepSums<T>& found = *sums<T>();
    exchange_with<T>(own.discriminator, discriminator_index,
                     {&found.d_loss, &found.real_score, &found.fake_score, &found.penalty});
    cpu::apply_gradients(here_, own, workspace, false, seconds);
  }

  template <class T>
  void generator_step(const StepProblem<T>& problem, bool fresh) {
    void* const workspace = workspace_.mutable_data_ptr();
    if (!exchange) return cpu::generator_step(here_, problem, workspace, fresh, sums<T>(), seconds);
    const StepProblem<T> own = with_gradients(problem);
    cpu::generator_step(here_, own, workspace, fresh, sums<T>(), seconds);
    exchange_with<T>(own.generator, generator_index, {&sums<T>()->g_loss});
    cpu::apply_gradients(here_, own, workspace, true, seconds);
  }

 private:
  // Of a step of several processes, what is exchanged of a network: its gradients, and so many statistics behind them.
  static constexpr int64_t most_statistics = 4;

  // The problem, its gradients to be handed in where they are exchanged.
  template <class T>
  StepProblem<T> with_gradients(const StepProblem<T>& problem) {
    StepProblem<T> own = problem;
    if (!exchange) return own;
    own.gradient_scale = 1.0 / double(processes);
    StepNetwork<T>* const networks[] = {&own.generator, &own.discriminator};
    for (int n = 0; n < 2; ++n) {
      const int64_t elements = cpu::gradient_elements(*networks[n]) + most_statistics;
      if (shares<T>(elements)) {
        networks[n]->gradients = shared->place<T>(shared->rank());
        networks[n]->all = {processes, -shared->rank() * shared->stride<T>(), shared->stride<T>()};
        continue;
      }
      Tensor& flat = gradients_[n];
      if (!flat.defined() || flat.numel() != elements) flat = at::zeros({elements}, networks_.first().options());
      networks[n]->gradients = mutable_data<T>(flat);
    }
    return own;
  }

  template <class T>
  bool shares(int64_t elements) const {
    return shared != nullptr && size_t(elements) * sizeof(T) <= shared->bytes();
  }

  // The gradients' sums over all processes, and the statistics' means.
  template <class T>
  void exchange_with(const StepNetwork<T>& network, int index, std::initializer_list<T*> statistics) {
    const int64_t elements = cpu::gradient_elements(network) + most_statistics;
    T* const behind = network.gradients + elements - most_statistics;
    std::fill_n(behind, most_statistics, T(0));
    int64_t i = 0;
    for (const T* each : statistics) behind[i++] = *each;
    if (shares<T>(elements))
      meet();
    else
      exchange(gradients_[index]);
    i = 0;
    for (T* each : statistics) {
      T sum = 0;
      for (int64_t p = 0; p < network.all.count; ++p) sum += behind[network.all.first + p * network.all.stride + i];
      *each = sum / T(processes);
      ++i;
    }
  }

  template <class T>
  StepSums<T>* sums() const {
    return static_cast<StepSums<T>*>(result_);
  }

  StepNetworks& networks_;
  const cpu::Context here_{};
  const std::vector<AdamGroup>* groups_ = nullptr;
  void* result_ = nullptr;
  Tensor workspace_, gradients_[2];
  std::pair<int64_t, int64_t> workspace_batch_{0, 0};  // of real data and of fakes
};

}  // namespace fastgan::bindings
