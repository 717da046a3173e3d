// What the penalties of a step are of, once D's gradient by its input is there. T is float or double.
#pragma once

#include "parts.h"

namespace fastgan::cuda {

// Rows of D's batch, part after part: their penalty, its gradient by D's gradient (which the tangent pass starts from),
// and, where the penalty is of sigma(D), by the logit.
template <class T>
struct PenaltyStart {
  Parts parts;
  int first;  // the number of their first part
  Penalties penalties;
  double weight[most_parts];    // of each part's penalty, whose mean is over its rows; zero: none
  int64_t width, sample, data;  // a row is of samples, whose first `data` features count
  T* gradient;                  // (rows, width): g, then the gradient by g
  const T* logits;              // (rows)
  // Where the gradient by the logit is added, either or both null:
  T* row_weight;  // (rows): as it is
  T* grad_z;      // (rows): through the last layer's activation
  const T* saved;
  ActivationArguments activation;
  T* mixed;             // (rows, width) or null: D's input x, which becomes row_weight x + the gradient by g
  T* penalty;           // the sum over the parts
  unsigned* odd_label;  // as of StepLoss
  bool is_last_of_step;
};
template <class T>
void penalty_start(const Context& context, const PenaltyStart<T>& arguments);

}  // namespace fastgan::cuda
