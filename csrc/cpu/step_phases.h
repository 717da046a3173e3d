// The two halves of a step, as each worker runs them. Included once for each instruction set, inside its namespace,
// last.

// The labels in one-hot form, the features after the first `width`.
template <class T>
void load_labels(const Worker& worker, const StepProblem<T>& problem, int64_t width, const Panels<T>& to) {
  if (problem.classes == 0 || worker.part != 0) return;
  for (int64_t p = worker.begin; p < worker.end; ++p) {
    T* out = to.at(p) + width * panel;
    std::memset(out, 0, problem.classes * panel * sizeof(T));
    for (int64_t r = 0; r < samples_in(p, problem.batch); ++r) out[problem.labels[p * panel + r] * panel + r] = T(1);
  }
}

template <class T>
LinearLayer<T> linear_of(const StepLayer<T>& layer) {
  return {.in = layer.in,
          .out = layer.out,
          .activation = layer.activation,
          .weight = layer.weight.value,
          .bias = layer.bias.value};
}

template <class T>
void forward(const Pass& pass, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int64_t batch) {
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    switch (layer.kind) {
      case LayerKind::linear:
        linear_forward(pass, linear_of(layer), buffers.layers[l], batch);
        break;
      case LayerKind::batch_norm:
        batch_norm_forward(pass, layer, buffers.layers[l], batch);
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
        dropout_forward(pass, layer, buffers.layers[l], batch);
        break;
    }
    pass.worker.layer_done();
  }
}

// The operands of the weight gradients of the layers from `lowest` on.
template <class T>
void transpose_inputs(const Pass& pass, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int lowest) {
  for (int l = lowest; l < network.count; ++l)
    if (network.layers[l].kind == LayerKind::linear && network.layers[l].weight.is_updated())
      transpose_input(pass, network.layers[l], buffers.layers[l], buffers.panels);
}

// What the gradients by a layer's parameters and by its input are both made of, from its grad_z.
template <class T>
void backward_sums(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t batch) {
  switch (layer.kind) {
    case LayerKind::batch_norm:
      batch_norm_sums(pass, layer, buffers, batch);
      break;
    case LayerKind::linear:
    case LayerKind::dropout:
    case LayerKind::identity:
      break;
  }
}

// From the last layer's grad_z down to that of layer `lowest`, and, where `beyond` is given, through layer 0 to it.
template <class T>
void backward(const Pass& pass, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int lowest,
              int64_t batch, const GradientTarget<T>* beyond) {
  for (int l = network.count - 1; l >= lowest; --l) {
    const StepLayer<T>& layer = network.layers[l];
    const LayerBuffers<T>& own = buffers.layers[l];
    backward_sums(pass, layer, own, batch);
    if (l == 0 && beyond == nullptr) return;
    if (l == lowest && l > 0) return;
    const GradientTarget<T> target =
        l == 0 ? *beyond
               : GradientTarget<T>{buffers.layers[l - 1].grad_z, buffers.layers[l - 1].saved,
                                   network.layers[l - 1].activation, network.layers[l - 1].out};
    switch (layer.kind) {
      case LayerKind::linear:
        linear_backward(pass, linear_of(layer), own, batch, target);
        break;
      case LayerKind::batch_norm:
        batch_norm_backward(pass, layer, own, batch, target);
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
        dropout_backward(pass, layer, own, batch, target);
        break;
    }
    pass.worker.layer_done();
  }
}

// The loss of a panel's logits against their target, and its gradient by z of the last layer. With weight 1 or -1.
template <class T>
void panel_loss(const StepLayer<T>& last, const LayerBuffers<T>& buffers, int64_t p, int64_t n, int64_t batch, T target,
                T sign, double* sums) {
  const T* logits = buffers.y.at(p);
  T *grad = buffers.grad_z.at(p), losses[panel], scores[panel];
  const T scale = sign / T(batch);
#pragma omp simd
  for (int64_t i = 0; i < panel; ++i) {
    const LossAndGradient<T> l = logits_loss(logits[i], target);
    losses[i] = l.loss;
    scores[i] = sigmoid_(logits[i]);
    grad[i] = i < n ? scale * l.gradient : T(0);
  }
  sums[0] = sums[1] = 0;
  for (int64_t i = 0; i < n; ++i) {
    sums[0] += double(sign) * double(losses[i]);
    sums[1] += double(scores[i]);
  }
  activation_backward(last.activation, panel, buffers.saved.at(p), grad);
  for (int64_t i = n; i < panel; ++i) grad[i] = 0;
}

// The targets of the first and of the second half.
template <class T>
void loss(const Pass& pass, const StepNetwork<T>& network, const StepBuffers<T>& buffers, int64_t batch, double first,
          double second, double sign) {
  const int last = network.count - 1;
  for (int64_t j = 0; pass.worker.part == 0 && j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    panel_loss(network.layers[last], buffers.discriminator.layers[last], p, samples_in(pass.in_half(p), batch), batch,
               T(pass.half(p) == 0 ? first : second), T(sign), buffers.sums + 2 * p);
  }
  pass.worker.layer_done();
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

template <class T>
void Kernels<T>::discriminator_step(const StepProblem<T>& problem, const StepBuffers<T>& buffers, Team& team,
                                    int thread, double* seconds) {
#if defined(FASTGAN_ISA_AMX)
  const TileRegisters tile_registers;
#endif
  const Worker worker(team, thread);
  const StepNetwork<T>&generator = problem.generator, &discriminator = problem.discriminator;
  const Pass fakes{worker, 1, 0, 1}, both{worker, 2, 0, 2};
  const Panels<T>& input = buffers.discriminator.input;
  Clock clock{thread == 0 ? seconds : nullptr};
  load_rows(worker, problem.noise, problem.batch, buffers.generator.input);
  load_rows(worker, problem.real, problem.batch, half_of(input, 0));
  load_labels(worker, problem, problem.noise.width, buffers.generator.input);
  for (const int half : {0, 1}) load_labels(worker, problem, problem.real.width, half_of(input, half));
  worker.layer_done();
  clock.ended(StepPhase::inputs);
  forward(fakes, generator, buffers.generator, problem.batch);
  clock.ended(StepPhase::generator_forward);
  forward(both, discriminator, buffers.discriminator, problem.batch);
  clock.ended(StepPhase::discriminator_forward);
  loss(both, discriminator, buffers, problem.batch, problem.real_target, problem.fake_target, 1);
  const int lowest = discriminator.lowest_updated();
  backward(both, discriminator, buffers.discriminator, lowest, problem.batch,
           static_cast<const GradientTarget<T>*>(nullptr));
  transpose_inputs(both, discriminator, buffers.discriminator, lowest);
  team.barrier.wait();
  clock.ended(StepPhase::discriminator_backward);
  update_network(worker, discriminator, buffers.discriminator, T(0));
  clock.ended(StepPhase::discriminator_update);
}

template <class T>
void Kernels<T>::generator_step(const StepProblem<T>& problem, const StepBuffers<T>& buffers, bool fresh, Team& team,
                                int thread, double* seconds) {
#if defined(FASTGAN_ISA_AMX)
  const TileRegisters tile_registers;
#endif
  const Worker worker(team, thread);
  const StepNetwork<T>&generator = problem.generator, &discriminator = problem.discriminator;
  const Pass first{worker, 1, 0, 1}, second{worker, 2, 1, 1};
  Clock clock{thread == 0 ? seconds : nullptr};
  if (fresh) {
    load_rows(worker, problem.noise, problem.batch, buffers.generator.input);
    load_labels(worker, problem, problem.noise.width, buffers.generator.input);
    worker.layer_done();
    clock.ended(StepPhase::inputs);
    forward(first, generator, buffers.generator, problem.batch);
    clock.ended(StepPhase::generator_forward);
  }
  forward(second, discriminator, buffers.discriminator, problem.batch);
  clock.ended(StepPhase::discriminator_forward);
  const LossPart part = problem.loss.generator;
  loss(second, discriminator, buffers, problem.batch, part.target, part.target, part.sign);
  // The fakes are every second panel of the discriminator's input, from the first on, but each of the generator's
  // output.
  const int last = generator.count - 1;
  const LayerBuffers<T>& output = buffers.generator.layers[last];
  const auto in_second_half = [&](Panels<T> panels) {
    return Panels<T>{panels.data - panels.stride / 2, panels.stride / 2};
  };
  const GradientTarget<T> fake{in_second_half(output.grad_z), in_second_half(output.saved),
                               generator.layers[last].activation, generator.layers[last].out};
  backward(second, discriminator, buffers.discriminator, 0, problem.batch, &fake);
  clock.ended(StepPhase::discriminator_backward);
  const int lowest = generator.lowest_updated();
  backward(first, generator, buffers.generator, lowest, problem.batch, static_cast<const GradientTarget<T>*>(nullptr));
  transpose_inputs(first, generator, buffers.generator, lowest);
  team.barrier.wait();
  clock.ended(StepPhase::generator_backward);
  update_network(worker, generator, buffers.generator, T(problem.average_rate));
  clock.ended(StepPhase::generator_update);
}
