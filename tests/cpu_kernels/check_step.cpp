#include "check.h"
#include "plain_training.h"

namespace checks {

namespace {

using fastgan::cpu::Context;

struct Case {
  std::string name;
  TrainingShape shape;
  const char* loss = "non_saturating";
  fastgan::Penalties penalties{};
  double clip_norm = 0;
  bool fresh = false;
};

// A step of D and one of G, and after each all that it has changed.
template <class T>
void check_case(const Case& one) {
  const fastgan::Arithmetic<T> arithmetic;
  Training<T> training(one.shape);
  fastgan::StepProblem<T> problem = training.problem();
  problem.loss = *fastgan::gan_loss_named(one.loss);
  problem.penalties = one.penalties, problem.clip_norm = one.clip_norm;
  PlainTraining plain(training, problem);
  Scratch workspace(fastgan::cpu::step_workspace(Context(), problem));
  fastgan::StepSums<T> sums{};
  fastgan::cpu::discriminator_step(Context(), problem, workspace.data(), &sums);
  plain.discriminator_step(problem);
  const std::string about = "step, " + one.name;
  expect<T>({sums.d_loss}, {plain.d_loss}, about + ": D's loss");
  expect<T>({sums.real_score, sums.fake_score}, {plain.real_score, plain.fake_score}, about + ": scores");
  if (one.penalties.exist()) expect<T>({sums.penalty}, {plain.penalty}, about + ": penalty");
  training.compare(training.discriminator, plain.discriminator, about + ": D");
  fastgan::cpu::generator_step(Context(), problem, workspace.data(), one.fresh, &sums);
  plain.generator_step(problem, one.fresh);
  expect<T>({sums.g_loss}, {plain.g_loss}, about + ": G's loss");
  training.compare(training.generator, plain.generator, about + ": G");
}

template <class T>
void check_all() {
  using enum fastgan::Activation;
  TrainingShape shape;
  check_case<T>({"plain", shape});
  shape.amsgrad = shape.averages = true;
  check_case<T>({"all of Adam's options, minimax", shape, "minimax", {}, 0, true});
  check_case<T>({"relativistic, clipped", shape, "relativistic", {}, 0.05});
  fastgan::Penalties penalties;
  penalties.r1 = 0.5, penalties.are_due = true;
  check_case<T>({"R1, linear in pieces", shape, "hinge", penalties});
  shape.d_hidden = {gelu, 0};
  penalties.r2 = 0.25;
  check_case<T>({"R1 and R2, smooth", shape, "least_squares", penalties});
  shape.normalised = true;
  check_case<T>({"batch normalisation and dropout", shape, "wasserstein", {}, 0, true});
  shape.normalised = false, shape.batch = 180, shape.hidden = 90;  // several threads
  check_case<T>({"larger", shape});
}

}  // namespace

void check_step() {
  check_all<float>();
  check_all<double>();
}

}  // namespace checks
