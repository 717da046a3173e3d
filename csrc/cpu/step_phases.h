// The two halves of a step, as each worker runs them. Included once for each instruction set, inside its namespace,
// last.

constexpr int parts_with_loss = 2;  // of D's batch: real data and fakes

// The parts of a loss at a panel of logits: its values, and its derivatives into `slopes`, with a mean's 1 / batch.
template <class T>
double part_loss(const LossPart& part, int64_t n, int64_t batch, const T* logits, T* slopes) {
  T losses[panel];
  const T scale = T(part.sign / double(batch)), target = T(part.target);
  with_loss_term(part.term, [&](auto term) {
    using L = decltype(term);
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) {
      const LossAndGradient<T> at = L::at(logits[i], target);
      losses[i] = at.loss;
      slopes[i] = i < n ? scale * at.gradient : T(0);
    }
  });
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += part.sign * double(losses[i]);
  return total;
}

template <class T>
double score_sum(bool of_probability, int64_t n, const T* logits) {
  T scores[panel];
#pragma omp simd
  for (int64_t i = 0; i < panel; ++i) scores[i] = of_probability ? sigmoid_(logits[i]) : logits[i];
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += double(scores[i]);
  return total;
}

// Of D where `is_of_d`, else of G, for which a paired loss looks at the real data too: losses, scores and derivatives.
template <class T>
void loss(const Pass& pass, const StepProblem<T>& problem, const StepBuffers<T>& buffers, bool is_of_d) {
  const GanLoss& loss = problem.loss;
  const Panels<T>& logits = buffers.discriminator.layers[problem.discriminator.count - 1].y;
  const Worker& worker = pass.worker;
  for (int64_t n = worker.begin; worker.part == 0 && n < worker.end; ++n) {
    const int64_t real = pass.at(0, n), fake = pass.at(1, n);
    const auto sums = [&](int64_t p) { return buffers.sums + 3 * p; };
    const auto slopes = [&](int64_t p) { return buffers.slopes + p * panel; };
    if (loss.is_paired) {
      const int64_t samples = pass.samples(fake), from = is_of_d ? real : fake, to = is_of_d ? fake : real;
      T differences[panel];
      for (int64_t i = 0; i < panel; ++i) differences[i] = logits.at(from)[i] - logits.at(to)[i];
      const LossPart part = is_of_d ? loss.real : loss.generator;
      sums(from)[0] = part_loss(part, samples, pass.batch(1), differences, slopes(from));
      sums(to)[0] = 0;
      for (int64_t i = 0; i < panel; ++i) slopes(to)[i] = -slopes(from)[i];
    }
    for (const int part : pass) {
      if (part > 1) {
        std::memset(slopes(pass.at(part, n)), 0, panel * sizeof(T));
        continue;
      }
      const int64_t p = pass.at(part, n), samples = pass.samples(p);
      if (!loss.is_paired)
        sums(p)[0] = part_loss(is_of_d ? problem.discriminator_part(part) : loss.generator, samples, pass.batch(part),
                               logits.at(p), slopes(p));
      sums(p)[1] = score_sum(loss.scores_probability, samples, logits.at(p));
    }
  }
  worker.layer_done();
}

// Marks the time at which a phase ended; null where nobody asks.
struct Clock {
  double* seconds;
  std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();

  void ended(StepPhase phase) {
    if (seconds == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    seconds[int(phase)] += std::chrono::duration<double>(now - last).count();
    last = now;
  }
};

// Where there is noise, fakes go from G's output to D's input with it.
template <class T>
void add_noise_to_fakes(const Pass& fakes, const StepProblem<T>& problem, const StepBuffers<T>& buffers) {
  if (!problem.has_noise) return;
  const Panels<T>& output = buffers.generator.layers[problem.generator.count - 1].y;
  add_instance_noise(fakes, problem, 1, buffers.discriminator.input, [&](int64_t p, int64_t member, const T*) {
    return output.at(fakes.in_part(p) * problem.pac + member);
  });
  fakes.worker.layer_done();
}

template <class T>
void load_real(const Pass& real, const StepProblem<T>& problem, const Panels<T>& input) {
  load_rows(real, problem.real, input, problem.pac, member_width(problem));
  if (problem.noise_scale > 0)
    add_instance_noise(real, problem, 0, input, [](int64_t, int64_t, const T* there) { return there; });
}

// What penalties add to D's gradients in this step.
template <class T>
PenaltyPass<T> penalty_pass(const StepProblem<T>& problem, const StepBuffers<T>& buffers) {
  PenaltyPass<T> penalty;
  penalty.layout = buffers.parts, penalty.slopes = buffers.slopes;
  penalty.with_slopes = problem.penalties.of_probability ? 3 : 2;
  for (int part = 0; part < buffers.parts; ++part)
    if (problem.penalties.weight(part) > 0) penalty.parts |= 1u << part;
  const StepNetwork<T>& discriminator = problem.discriminator;
  for (int l = 0; l < discriminator.count; ++l)
    penalty.is_smooth = penalty.is_smooth || !is_piecewise_linear(discriminator.layers[l].activation.activation);
  return penalty;
}

template <class T>
void Kernels<T>::discriminator_step(const StepProblem<T>& problem, const StepBuffers<T>& buffers, bool gradients_follow,
                                    Team& team, int thread, double* seconds) {
#if defined(FASTGAN_ISA_AMX)
  const TileRegisters tile_registers;
#endif
  const Worker worker(team, thread);
  const StepNetwork<T>&generator = problem.generator, &discriminator = problem.discriminator;
  const int64_t pac = problem.pac, inputs[] = {problem.batch / pac, problem.fake_batch / pac, problem.batch / pac};
  const int parts = buffers.parts;
  const Pass noise(worker, inputs, pac), real(worker, inputs, parts, {0}), fake(worker, inputs, parts, {1});
  Pass all(worker, inputs, parts, {0, 1}), with_penalty(worker, inputs, parts, {});
  const PenaltyPass<T> penalty = penalty_pass(problem, buffers);
  for (int part = 0; part < parts; ++part)
    if (penalty.has(part)) with_penalty.add(part);
  const Panels<T>& input = buffers.discriminator.input;
  const int64_t data = member_width(problem) - problem.classes;
  Clock clock{thread == 0 ? seconds : nullptr};
  load_real(real, problem, input);
  load_labels(real, problem, problem.labels, data, pac, input);
  load_labels(fake, problem, problem.fake_labels, data, pac, input);
  if (generator.count > 0) {
    load_rows(noise, problem.noise, buffers.generator.input);
    load_labels(noise, problem, problem.labels, problem.noise.width, pac, buffers.generator.input);
  } else {
    load_rows(fake, problem.fake, input, pac, member_width(problem));
  }
  worker.layer_done();
  clock.ended(StepPhase::inputs);
  if (generator.count > 0) {
    forward(noise, generator, buffers.generator);
    add_noise_to_fakes(fake, problem, buffers);
  }
  const Pass real_and_fake = all;
  bool mixes_outputs = false;  // of the first layer, not its inputs
  if (penalty.has(2)) {
    all.add(2);
    mixes_outputs = problem.classes == 0 && discriminator.layers[0].kind == LayerKind::linear;
    // Without a second order the weight gradients do not look at these inputs.
    if (!mixes_outputs || penalty.is_smooth || penalty.with_slopes > 2) {
      mix_inputs(Pass(worker, inputs, parts, {2}), problem, input);
      worker.layer_done();
    }
  }
  clock.ended(StepPhase::generator_forward);
#if !defined(FASTGAN_ISA_BF16)
  if (mixes_outputs) mixed_forward(real_and_fake, problem, buffers.discriminator.layers[0]);
#endif
  forward(all, discriminator, buffers.discriminator, mixes_outputs ? 1 : 0);
  clock.ended(StepPhase::discriminator_forward);
  loss(all, problem, buffers, true);
  const int lowest = discriminator.lowest_updated(), last = discriminator.count - 1;
#if !defined(FASTGAN_ISA_BF16)
  if (penalty.exists()) {
    penalized_backward(all, with_penalty, problem, buffers, penalty);
  } else
#endif
  {
    const NetworkBuffers<T>& own = buffers.discriminator;
    begin_backward(all, discriminator.layers[last], own.layers[last], buffers.slopes, penalty, false,
                   own.layers[last].grad_z);
    backward(all, discriminator, own, lowest, static_cast<const GradientTarget<T>*>(nullptr));
    transpose_inputs(all, discriminator, own, lowest);
  }
  team.barrier.wait();
  clock.ended(StepPhase::discriminator_backward);
  if (gradients_follow) return;
  update_network(worker, discriminator, buffers.discriminator, T(0), problem.clip_norm, parts_with_loss, penalty);
  clock.ended(StepPhase::discriminator_update);
}

template <class T>
void Kernels<T>::hand_in_gradients(const StepProblem<T>& problem, const StepBuffers<T>& buffers, bool of_generator,
                                   LayerRange range, Team& team, int thread, double* seconds) {
#if defined(FASTGAN_ISA_AMX)
  const TileRegisters tile_registers;
#endif
  const Worker worker(team, thread);
  Clock clock{thread == 0 ? seconds : nullptr};
  if (of_generator)
    weight_gradients(worker, problem.generator, buffers.generator, range, T(0), 1, PenaltyPass<T>());
  else
    weight_gradients(worker, problem.discriminator, buffers.discriminator, range, T(0), parts_with_loss,
                     penalty_pass(problem, buffers));
  clock.ended(of_generator ? StepPhase::generator_update : StepPhase::discriminator_update);
}

template <class T>
void Kernels<T>::apply_gradients(const StepProblem<T>& problem, const StepBuffers<T>& buffers, bool of_generator,
                                 LayerRange range, Team& team, int thread, double* seconds) {
  Clock clock{thread == 0 ? seconds : nullptr};
  stored_update(Worker(team, thread), of_generator ? problem.generator : problem.discriminator,
                of_generator ? buffers.generator : buffers.discriminator, range, problem.clip_norm,
                problem.gradient_scale, T(of_generator ? problem.average_rate : 0));
  clock.ended(of_generator ? StepPhase::generator_update : StepPhase::discriminator_update);
}

template <class T>
void Kernels<T>::generator_step(const StepProblem<T>& problem, const StepBuffers<T>& buffers, bool fresh,
                                bool gradients_follow, Team& team, int thread, double* seconds) {
#if defined(FASTGAN_ISA_AMX)
  const TileRegisters tile_registers;
#endif
  const Worker worker(team, thread);
  const StepNetwork<T>&generator = problem.generator, &discriminator = problem.discriminator;
  const int64_t pac = problem.pac, inputs[] = {problem.batch / pac, problem.batch / pac};
  const int parts = buffers.parts;
  const bool is_paired = problem.loss.is_paired;
  const Pass noise(worker, inputs, pac), real(worker, inputs, parts, {0});
  const Pass fake(worker, inputs, parts, {1}, is_paired ? 0 : 1);
  const Pass judged = is_paired ? Pass(worker, inputs, parts, {0, 1}) : fake;
  Clock clock{thread == 0 ? seconds : nullptr};
  if (is_paired && problem.noise_scale > 0) load_real(real, problem, buffers.discriminator.input);
  if (fresh) {
    load_rows(noise, problem.noise, buffers.generator.input);
    load_labels(noise, problem, problem.labels, problem.noise.width, pac, buffers.generator.input);
    worker.layer_done();
    clock.ended(StepPhase::inputs);
    forward(noise, generator, buffers.generator);
  }
  add_noise_to_fakes(fake, problem, buffers);
  worker.layer_done();
  clock.ended(StepPhase::generator_forward);
  forward(judged, discriminator, buffers.discriminator);
  clock.ended(StepPhase::discriminator_forward);
  loss(judged, problem, buffers, false);
  const NetworkBuffers<T>& own = buffers.discriminator;
  const int last_of_d = discriminator.count - 1;
  const PenaltyPass<T> none;
  begin_backward(fake, discriminator.layers[last_of_d], own.layers[last_of_d], buffers.slopes, none, false,
                 own.layers[last_of_d].grad_z);
  // The fakes are some of the panels of D's input, but each of those, or of those groups, of G's output.
  const int last = generator.count - 1;
  const LayerBuffers<T>& output = buffers.generator.layers[last];
  const auto in_input = [&](const Panels<T>& panels) { return Panels<T>{panels.data, panels.stride, parts, 0}; };
  const GradientTarget<T> target{in_input(output.grad_z), in_input(output.saved), generator.layers[last].activation,
                                 pac == 1 ? generator.layers[last].out : discriminator.in()};
  backward(fake, discriminator, own, 0, &target);
  clock.ended(StepPhase::discriminator_backward);
  const int lowest = generator.lowest_updated();
  backward(noise, generator, buffers.generator, lowest, static_cast<const GradientTarget<T>*>(nullptr));
  transpose_inputs(noise, generator, buffers.generator, lowest);
  team.barrier.wait();
  clock.ended(StepPhase::generator_backward);
  if (gradients_follow) return;
  update_network(worker, generator, buffers.generator, T(problem.average_rate), problem.clip_norm, 1, none);
  clock.ended(StepPhase::generator_update);
}
