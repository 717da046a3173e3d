// The losses of a GAN: the compiled twin of reference.GAN_LOSSES. To add one, name it in both; all else follows.
#pragma once

#include "logits_loss.h"

namespace fastgan {

// One batch's part of a loss: sign times the mean of a term.
struct LossPart {
  LossTerm term;
  double target;
  double sign = 1;
};

struct GanLoss {
  const char* name;           // of a step's `loss`
  const char* discriminator;  // the kind of discriminator_loss that its D minimises
  bool is_paired;             // of the differences of the logits of the i-th real and the i-th fake sample, or reversed
  bool takes_targets;         // D's targets are the user's; these are their defaults
  LossPart real, fake;        // of D. Paired: `real` alone, of real - fake
  LossPart generator;         // of G, of the fakes. Paired: of fake - real
  bool scores_probability;    // a score is the mean of sigma(logit), else of the logit

  // Of G's part, where `target` is what it wants D to answer, 1 by default: minus a term is against the opposite.
  constexpr double generator_target(double wanted) const {
    if (!takes_targets) return generator.target;
    return generator.sign < 0 ? 1 - wanted : wanted;
  }
};

constexpr LossPart likely{LossTerm::cross_entropy, 1}, unlikely{LossTerm::cross_entropy, 0};
constexpr LossPart not_unlikely{LossTerm::cross_entropy, 0, -1};
constexpr LossPart above{LossTerm::hinge, 1}, below{LossTerm::hinge, -1};
constexpr LossPart up{LossTerm::linear, 1}, down{LossTerm::linear, -1};
constexpr LossPart near_one{LossTerm::square, 1}, near_zero{LossTerm::square, 0};

constexpr GanLoss gan_losses[] = {
    // name, discriminator, is_paired, takes_targets, real, fake, generator, scores_probability
    {"non_saturating", "bce", false, true, likely, unlikely, likely, true},
    {"minimax", "bce", false, true, likely, unlikely, not_unlikely, true},
    {"relativistic", "relativistic", true, false, likely, likely, likely, true},
    {"hinge", "hinge", false, false, above, below, up, false},
    {"wasserstein", "wasserstein", false, false, up, down, up, false},
    {"least_squares", "least_squares", false, true, near_one, near_zero, near_one, false},
};

}  // namespace fastgan
