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

  // Of so many processes that take each step together, begins to put the sum over all of them in the place of a tensor;
  // the result waits until it is there.
  std::function<std::function<void()>(const Tensor&)> exchange;
  int64_t processes = 1;
  size_t part_bytes = 0;  // the least that is sent at once, unless there is no more
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
    StepSums<T>& found = *sums<T>();
    cpu::discriminator_step(here_, own, workspace, &found, seconds, !is_shared(own.discriminator));
    update_by_all(own, false, {&found.d_loss, &found.real_score, &found.fake_score, &found.penalty});
  }

  template <class T>
  void generator_step(const StepProblem<T>& problem, bool fresh) {
    void* const workspace = workspace_.mutable_data_ptr();
    if (!exchange) return cpu::generator_step(here_, problem, workspace, fresh, sums<T>(), seconds);
    const StepProblem<T> own = with_gradients(problem);
    cpu::generator_step(here_, own, workspace, fresh, sums<T>(), seconds, !is_shared(own.generator));
    update_by_all(own, true, {&sums<T>()->g_loss});
  }

 private:
  // Of a step of several processes, what is exchanged of a network: its gradients, and so many statistics behind them.
  static constexpr int64_t most_statistics = 4;

  template <class T>
  static int64_t exchanged_elements(const StepNetwork<T>& network) {
    return cpu::gradient_elements(network, {0, network.count}) + most_statistics;
  }

  // The problem, its gradients to be handed in where they are exchanged.
  template <class T>
  StepProblem<T> with_gradients(const StepProblem<T>& problem) {
    StepProblem<T> own = problem;
    if (!exchange) return own;
    own.gradient_scale = 1.0 / double(processes);
    StepNetwork<T>* const networks[] = {&own.discriminator, &own.generator};
    for (const bool of_generator : {false, true}) {
      StepNetwork<T>& network = *networks[of_generator];
      if (is_shared(network)) {
        network.gradients = shared->place<T>(shared->rank());
        network.all = {processes, -shared->rank() * shared->stride<T>(), shared->stride<T>()};
        continue;
      }
      const int64_t elements = exchanged_elements(network);
      Tensor& flat = gradients_[of_generator];
      if (!flat.defined() || flat.numel() != elements) flat = at::zeros({elements}, networks_.first().options());
      network.gradients = mutable_data<T>(flat);
    }
    return own;
  }

  template <class T>
  bool is_shared(const StepNetwork<T>& network) const {
    return shared != nullptr && size_t(exchanged_elements(network)) * sizeof(T) <= shared->bytes();
  }

  // The update by the gradients' sums over all processes; the statistics become means.
  template <class T>
  void update_by_all(const StepProblem<T>& own, bool of_generator, std::initializer_list<T*> statistics) {
    const StepNetwork<T>& network = of_generator ? own.generator : own.discriminator;
    void* const workspace = workspace_.mutable_data_ptr();
    const auto apply = [&](cpu::LayerRange range) {
      cpu::apply_gradients(here_, own, workspace, of_generator, range, seconds);
    };
    T* const behind = network.gradients + exchanged_elements(network) - most_statistics;
    std::fill_n(behind, most_statistics, T(0));
    int64_t i = 0;
    for (const T* each : statistics) behind[i++] = *each;
    if (is_shared(network))
      meet();
    else
      exchange_in_parts(own, of_generator, apply);
    i = 0;
    for (T* each : statistics) {
      T sum = 0;
      for (int64_t p = 0; p < network.all.count; ++p) sum += behind[network.all.first + p * network.all.stride + i];
      *each = sum / T(processes);
      ++i;
    }
    if (is_shared(network)) apply({0, network.count});
  }

  // The gradients of the last layers are sent while those of the layers before them are computed, and each part is
  // applied while the next ones are on their way. The statistics are behind the last layer's.
  template <class T, class Apply>
  void exchange_in_parts(const StepProblem<T>& own, bool of_generator, const Apply& apply) {
    const StepNetwork<T>& network = of_generator ? own.generator : own.discriminator;
    void* const workspace = workspace_.mutable_data_ptr();
    std::vector<std::pair<cpu::LayerRange, std::function<void()>>> sent;
    int64_t end = exchanged_elements(network);
    for (int first = network.count - 1, last = network.count; first >= 0; --first) {
      const int64_t begin = cpu::gradient_elements(network, {0, first});
      if (first > 0 && (size_t(end - begin) * sizeof(T) < part_bytes || begin == 0)) continue;
      const cpu::LayerRange range{first, last};
      cpu::hand_in_gradients(here_, own, workspace, of_generator, range, seconds);
      sent.emplace_back(range, exchange(gradients_[of_generator].slice(0, begin, end)));
      last = first, end = begin;
    }
    const bool needs_all = own.clip_norm > 0;
    for (const auto& [range, wait] : sent) {
      wait();
      if (!needs_all) apply(range);
    }
    if (needs_all) apply({0, network.count});
  }

  template <class T>
  StepSums<T>* sums() const {
    return static_cast<StepSums<T>*>(result_);
  }

  StepNetworks& networks_;
  const cpu::Context here_{};
  const std::vector<AdamGroup>* groups_ = nullptr;
  void* result_ = nullptr;
  Tensor workspace_, gradients_[2];                    // D's and G's, with the statistics behind them
  std::pair<int64_t, int64_t> workspace_batch_{0, 0};  // of real data and of fakes
};

}  // namespace fastgan::bindings
