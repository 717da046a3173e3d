// Gradient penalties of D. Included once for each instruction set, inside its namespace, after step_update.h.
//
// D's output is one number a sample, so the gradient of a loss by z_l is delta_l, the gradient of the output, times the
// loss's derivative c. A penalty needs g = W_1^T delta_1, the gradient by the input; what it adds to the gradients of
// the weights is, with t_0 its derivative by g, that of the derivative of D along t_0, which is held fixed:
//   u_l = W_l t_(l-1), t_l = act'(z_l) u_l              the tangent pass
//   dW_l = sum delta_l t_(l-1)^T + e_l h_(l-1)^T, db_l = sum e_l
//   e_l = act''(z_l) (W_(l+1)^T delta_(l+1)) u_l + act'(z_l) W_(l+1)^T e_(l+1)
// Piecewise-linear activations have no e, and loss and penalty need one product: sum delta_l (c h_(l-1) + t_(l-1))^T.
// Others run the chain of c delta_l + e_l, and need a second one.

// Where the chain of delta begins: for parts with a penalty at 1, for others at c.
template <class T>
void begin_backward(const Pass& pass, const StepLayer<T>& last, const LayerBuffers<T>& buffers, const T* slopes,
                    const PenaltyPass<T>& penalty, bool of_output, const Panels<T>& grad) {
  for (int64_t j = 0; pass.worker.part == 0 && j < pass.count(); ++j) {
    const int64_t p = pass.index(j), n = pass.samples(p);
    const bool ones = of_output && penalty.has(pass.part(p));
    T* const out = grad.at(p);
    for (int64_t i = 0; i < panel; ++i) out[i] = ones ? T(i < n) : slopes[p * panel + i];
    const bool curved = of_output && buffers.curvature.data != nullptr;
    const bool added = !of_output && penalty.has(pass.part(p)) && buffers.curvature.data != nullptr;
    activation_backward(last.activation, panel, buffers.saved.at(p), out, curved ? buffers.curvature.at(p) : nullptr,
                        added ? buffers.curvature.at(p) : nullptr);
    clear_padding(1, n, out);
  }
  pass.worker.layer_done();
}

#if !defined(FASTGAN_ISA_BF16)

// D's first layer, which is linear, on real data and fakes, and on the points between them, of which it is linear:
// their z is the mixture of both z, so that they need no product. Not with labels, of which the points have the real
// data's.
template <class T>
void mixed_forward(const Pass& real_and_fake, const StepProblem<T>& problem, const LayerBuffers<T>& buffers) {
  const LinearLayer<T> layer = linear_of(problem.discriminator.layers[0]);
  TileTask<T> task{};
  task.epilogue = Epilogue::bias;
  task.bias = layer.bias;
  const auto activated = [&](int64_t p, int64_t n, int64_t row, int height) {
    T* const y = buffers.y.at(p) + row * panel;
    activate(layer.activation, height * panel, buffers.saved.at(p) + row * panel, y);
    clear_padding(height, n, y);
  };
  multiply_weight(real_and_fake, layer, buffers.x, buffers.saved, task, Panels<T>{},
                  [&](int64_t p, int64_t row, int height, const T* z_fake) {
                    if (real_and_fake.part(p) == 0) return;  // its fakes, of the same tile, are next
                    const int64_t n = real_and_fake.samples(p), first = real_and_fake.in_part(p) * panel;
                    const T* z_real = buffers.saved.at(p - 1) + row * panel;
                    T *z = buffers.saved.at(p + 1) + row * panel, u[panel] = {};
                    for (int64_t i = 0; i < n; ++i) u[i] = problem.mix[first + i];
                    for (int m = 0; m < height; ++m)
#pragma omp simd
                      for (int64_t i = 0; i < panel; ++i)
                        z[m * panel + i] = u[i] * z_real[m * panel + i] + (T(1) - u[i]) * z_fake[m * panel + i];
                    for (const int64_t of : {p - 1, p, p + 1}) activated(of, n, row, height);
                  });
  real_and_fake.worker.layer_done();
}

// Of the gradients by the inputs, which `direction` holds: the penalty, what it adds to the derivative by the logit,
// and, in their place, its own derivative by them.
template <class T>
void penalty_directions(const Pass& pass, const StepProblem<T>& problem, const StepBuffers<T>& buffers,
                        const Panels<T>& logits, const Panels<T>& direction) {
  const int64_t in = problem.discriminator.in(), member = in / problem.pac, width = member - problem.classes;
  const Penalties& penalties = problem.penalties;
  const Worker& worker = pass.worker;
  for (int64_t j = 0; worker.part == 0 && j < pass.count(); ++j) {
    const int64_t p = pass.index(j), n = pass.samples(p);
    const T* g = direction.at(p);
    double squares[panel] = {};
    for (int64_t c = 0; c < in; ++c)
      if (c % member < width)
        for (int64_t i = 0; i < panel; ++i) squares[i] += double(g[c * panel + i]) * double(g[c * panel + i]);
    const int part = pass.part(p);
    const double weight = penalties.weight(part), batch = double(pass.batch(part));
    T *factors = buffers.factors + p * panel, *slopes = buffers.slopes + p * panel;
    double total = 0;
    for (int64_t i = 0; i < panel; ++i) {
      const Sigmoids<double> s = sigmoids(double(logits.at(p)[i]));
      const double slope = penalties.of_probability ? s.positive * s.negative : 1;  // of the output by the logit
      const double bend = penalties.of_probability ? slope * (s.negative - s.positive) : 0;
      const PenaltyAt at = penalty_at(penalties, part, squares[i], slope, bend);
      factors[i] = i < n ? T(weight / batch * at.factor) : T(0);
      if (i >= n) continue;
      if (bend != 0) slopes[i] += T(weight / batch * at.by_logit);
      total += weight * at.value;
    }
    buffers.sums[3 * p + 2] = total;
  }
  worker.layer_done();
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    const T* factors = buffers.factors + p * panel;
    for (int64_t c = worker.from(in); c < worker.to(in); ++c) {
      T* g = direction.at(p) + c * panel;
      for (int64_t i = 0; i < panel; ++i) g[i] = c % member < width ? g[i] * factors[i] : T(0);
      clear_padding(1, pass.samples(p), g);
    }
  }
  worker.layer_done();
}

// The tangent of y from that of x, which goes where the next layer has its own, if there is one.
template <class T>
void tangent(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, const Panels<T>& out) {
  const auto pass_on = [&](int64_t p, int64_t row, int64_t rows, T* at) {
    if (buffers.curvature.data != nullptr) {
      T* curvature = buffers.curvature.at(p) + row * panel;
      for (int64_t i = 0; i < rows * panel; ++i) curvature[i] *= at[i];
    }
    const T* saved = buffers.saved.at(p) + row * panel;
    activation_backward(layer.activation, rows * panel, saved, at);
    clear_padding(rows, pass.samples(p), at);
  };
  switch (layer.kind) {
    case LayerKind::linear: {
      TileTask<T> task{};
      task.epilogue = backward_epilogue(layer.activation);
      task.slope = T(layer.activation.negative_slope);
      const bool done = task.epilogue != Epilogue::none;
      multiply_weight(pass, linear_of(layer), buffers.tangent, out, task, done ? buffers.saved : Panels<T>{},
                      [&](int64_t p, int64_t row, int height, T* at) {
                        if (done)
                          clear_padding(height, pass.samples(p), at);
                        else
                          pass_on(p, row, height, at);
                      });
      break;
    }
    case LayerKind::dropout:
    case LayerKind::identity: {
      const int64_t from = pass.worker.from(layer.out), to = pass.worker.to(layer.out);
      for (int64_t j = 0; j < pass.count(); ++j) {
        const int64_t p = pass.index(j);
        apply_mask(layer, buffers, p, from, to, buffers.tangent.at(p), out.at(p));
        pass_on(p, from, to - from, out.at(p) + from * panel);
      }
      break;
    }
    case LayerKind::batch_norm:
    case LayerKind::segmented:
      break;  // Python composes these
  }
  pass.worker.layer_done();
}

// The operand of a weight gradient that is x elsewhere: c x + t of the parts with a penalty; where c is zero,
// t.
template <class T>
void combine_input(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels,
                   const PenaltyPass<T>& penalty) {
  alignas(64) T block[panel * panel];
  const int64_t blocks = (layer.in + panel - 1) / panel;
  const Worker& worker = pass.worker;
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    const T* slopes = penalty.slopes + p * panel;
    for (int64_t b = worker.from(blocks); b < worker.to(blocks); ++b) {
      const int64_t columns = std::min(panel, layer.in - b * panel), at = b * panel * panel;
      const T* x = buffers.x.at(p) + at;
      T* const thin = buffers.combined.data == nullptr ? nullptr : buffers.combined.at(p);
      if (penalty.has(pass.part(p))) {
        const T* t = buffers.tangent.at(p) + at;
        const bool has_slopes = pass.part(p) < penalty.with_slopes;
        for (int64_t c = 0; c < columns; ++c)
#pragma omp simd
          for (int64_t i = 0; i < panel; ++i)
            block[c * panel + i] = has_slopes ? slopes[i] * x[c * panel + i] + t[c * panel + i] : t[c * panel + i];
        x = block;
      }
      if (thin != nullptr)
        std::memcpy(thin, x, columns * panel * sizeof(T));
      else
        transpose(columns, panel, x, panel, buffers.x_rows + (b * panels + p) * panel * panel, panel);
    }
  }
}

// The tangent with the samples as rows, a part after the other.
template <class T>
void transpose_tangent(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  if (layer.in <= thin_width) return;
  const int64_t blocks = (layer.in + panel - 1) / panel, panels = pass.panels();
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j), n = pass.in_part(p);
    for (int64_t b = pass.worker.from(blocks); b < pass.worker.to(blocks); ++b)
      transpose(std::min(panel, layer.in - b * panel), panel, buffers.tangent.at(p) + b * panel * panel, panel,
                buffers.tangent_rows + ((pass.part(p) * blocks + b) * panels + n) * panel * panel, panel);
  }
}

// Adds sum delta t^T over the parts with a penalty to a tile of a weight gradient.
template <class T>
void add_tangent_tile(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels,
                      const PenaltyPass<T>& penalty, int64_t row, int height, int64_t column, T* tile) {
  alignas(64) T more[gradient_rows * panel];
  const int64_t blocks = (layer.in + panel - 1) / panel, each = panels / penalty.layout;
  for (int part = 0; part < penalty.layout; ++part) {
    if (!penalty.has(part)) continue;
    if (layer.in <= thin_width) {
      LayerBuffers<T> own;
      own.grad_z = {buffers.delta.at(part), buffers.delta.stride * penalty.layout};
      own.x = {buffers.tangent.at(part), buffers.tangent.stride * penalty.layout};
      thin_gradient(own, 0, each, row, height, layer.in, more);
      for (int m = 0; m < height; ++m)
        for (int64_t i = 0; i < layer.in; ++i) tile[m * panel + i] += more[m * panel + i];
      continue;
    }
    TileTask<T> task{};
    task.a = buffers.delta.at(part) + row * panel;
    task.a_next = buffers.delta.stride * penalty.layout;
    task.b = buffers.tangent_rows + (part * blocks + column / panel) * each * panel * panel;
    task.k = each * panel;
    task.c = tile;
    task.accumulate = true;
    task.fetch_tile = {{tile, tile, tile}, panel};  // nothing
    multiply<T, Storage::panels>(height, task);
  }
}

// The backward pass of D's loss and its penalties, as far as the operands of the weight gradients. `all`: every part;
// `with_penalty`: those that have one in this step.
template <class T>
void penalized_backward(const Pass& all, const Pass& with_penalty, const StepProblem<T>& problem,
                        const StepBuffers<T>& buffers, const PenaltyPass<T>& penalty) {
  const StepNetwork<T>& network = problem.discriminator;
  const NetworkBuffers<T>& own = buffers.discriminator;
  const int last = network.count - 1;
  // The chain of delta. Where there is no second order it serves the loss too.
  const Pass& chain = penalty.is_smooth ? with_penalty : all;
  const auto delta_of = [&](int l) { return penalty.is_smooth ? own.layers[l].delta : own.layers[l].grad_z; };
  begin_backward(chain, network.layers[last], own.layers[last], buffers.slopes, penalty, true, delta_of(last));
  for (int l = last; l >= 0; --l) {
    LayerBuffers<T> layer = own.layers[l];
    layer.grad_z = delta_of(l);
    if (l > 0) {
      const LayerBuffers<T>& before = own.layers[l - 1];
      const StepLayer<T>& to = network.layers[l - 1];
      layer_backward(chain, network.layers[l], layer,
                     GradientTarget<T>{delta_of(l - 1), before.saved, to.activation, to.out, before.curvature});
    } else {
      layer_backward(with_penalty, network.layers[l], layer,
                     GradientTarget<T>{layer.tangent, {}, {Activation::identity, 0}, network.in()});
    }
    all.worker.layer_done();
  }
  penalty_directions(with_penalty, problem, buffers, own.layers[last].y, own.layers[0].tangent);
  for (int l = 0; l <= last; ++l) {
    const bool needed = l < last || own.layers[l].curvature.data != nullptr;
    if (needed) tangent(with_penalty, network.layers[l], own.layers[l], own.layers[l].tangent_of_y);
  }
  const int lowest = network.lowest_updated();
  if (!penalty.is_smooth) {
    for (int l = lowest; l <= last; ++l)
      if (network.layers[l].kind == LayerKind::linear && network.layers[l].weight.is_updated())
        combine_input(all, network.layers[l], own.layers[l], own.panels, penalty);
    return;
  }
  begin_backward(all, network.layers[last], own.layers[last], buffers.slopes, penalty, false, own.layers[last].grad_z);
  backward(all, network, own, lowest, static_cast<const GradientTarget<T>*>(nullptr), penalty.parts);
  transpose_inputs(all, network, own, lowest);
  for (int l = lowest; l <= last; ++l)
    if (network.layers[l].kind == LayerKind::linear && network.layers[l].weight.is_updated())
      transpose_tangent(with_penalty, network.layers[l], own.layers[l]);
}

#endif
