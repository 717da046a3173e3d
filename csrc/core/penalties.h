// One input's part of a gradient penalty on D, from the square of the gradient g of D's logit by it.
#pragma once

#include "step.h"

namespace fastgan {

struct PenaltyAt {
  double value;     // of the sample, whose mean times the weight is what is added
  double factor;    // its derivative by g is factor times g
  double by_logit;  // and by the logit, where what is penalised is a function of that
};

// slope, bend: the first and second derivative by the logit of what is penalised: 1 and 0, or those of sigma.
FASTGAN_INLINE PenaltyAt penalty_at(const Penalties& penalties, int part, double squares, double slope, double bend) {
  if (part < 2) return {0.5 * slope * slope * squares, slope * slope, slope * bend * squares};
  const double norm = sqrt_(squares), excess = slope * norm - penalties.gp_center;
  // As torch's norm, which has no direction at zero.
  const double factor = slope * norm == 0 ? 0 : 2 * excess * slope / norm;
  return {excess * excess, factor, 2 * excess * bend * norm};
}

}  // namespace fastgan
