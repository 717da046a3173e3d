// A whole step on the CPU: csrc/cpu/step.h over the engine's tensors.
#pragma once

#include <utility>

#include "../cpu/step.h"
#include "step_networks.h"

namespace fastgan::bindings {

class CpuStep {
 public:
  explicit CpuStep(StepNetworks& networks) : networks_(networks) {}

  // Where not null, seconds of each phase are added up there.
  double* seconds = nullptr;

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
    workspace_ = at::zeros({int64_t(step_workspace(here_, problem))}, networks_.first().options().dtype(at::kByte));
    workspace_batch_ = batch;
  }

  template <class T>
  void discriminator_step(const StepProblem<T>& problem) {
    cpu::discriminator_step(here_, problem, workspace_.mutable_data_ptr(), sums<T>(), seconds);
  }

  template <class T>
  void generator_step(const StepProblem<T>& problem, bool fresh) {
    cpu::generator_step(here_, problem, workspace_.mutable_data_ptr(), fresh, sums<T>(), seconds);
  }

 private:
  template <class T>
  StepSums<T>* sums() const {
    return static_cast<StepSums<T>*>(result_);
  }

  StepNetworks& networks_;
  const cpu::Context here_{};
  const std::vector<AdamGroup>* groups_ = nullptr;
  void* result_ = nullptr;
  Tensor workspace_;
  std::pair<int64_t, int64_t> workspace_batch_{0, 0};  // of real data and of fakes
};

}  // namespace fastgan::bindings
