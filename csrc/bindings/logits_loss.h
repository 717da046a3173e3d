// The GAN losses: what a call is beside its logits, and the ops beneath autograd.
#pragma once

#include "../core/logits_loss.h"
#include "common.h"

namespace fastgan::bindings {

// One batch or several against a constant each, or, paired, the differences of two batches, first - second, against
// one.
struct LossCall {
  int64_t term;  // a LossTerm
  std::vector<double> targets;
  double sign;
  bool paired;
  int64_t reduction;
};

using LogitsLossForward = std::tuple<Tensor, std::vector<Tensor>>(TensorList, int64_t, at::ArrayRef<double>, double,
                                                                  bool, int64_t, bool);
using LogitsLossBackward = std::vector<Tensor>(const Tensor&, TensorList, int64_t, bool, int64_t);
using LogitsLossDoubleBackward = std::tuple<Tensor, std::vector<Tensor>>(TensorList, const Tensor&, TensorList, int64_t,
                                                                         at::ArrayRef<double>, double, bool, int64_t);

// (loss, gradients by each batch of logits or by the differences, each for weight one; none unless asked for)
inline std::tuple<Tensor, std::vector<Tensor>> logits_loss_forward(TensorList logits, const LossCall& call,
                                                                   bool with_gradient) {
  FASTGAN_OP("logits_loss_forward", LogitsLossForward);
  return op.call(logits, call.term, call.targets, call.sign, call.paired, call.reduction, with_gradient);
}

// The gradients by each batch of logits.
inline std::vector<Tensor> logits_loss_backward(const Tensor& grad_output, TensorList gradients, const LossCall& call) {
  FASTGAN_OP("logits_loss_backward", LogitsLossBackward);
  return op.call(grad_output, gradients, call.term, call.paired, call.reduction);
}

// (the derivative of logits_loss_backward's results by grad_output, those by each batch of logits)
inline std::tuple<Tensor, std::vector<Tensor>> logits_loss_double_backward(TensorList cotangents,
                                                                           const Tensor& grad_output, TensorList logits,
                                                                           const LossCall& call) {
  FASTGAN_OP("logits_loss_double_backward", LogitsLossDoubleBackward);
  return op.call(cotangents, grad_output, logits, call.term, call.targets, call.sign, call.paired, call.reduction);
}

}  // namespace fastgan::bindings
