// The layers of a network, forward and backward on a worker's panels. Included once for each instruction set, inside
// its namespace, after step_product.h.

// y = activation(z); y may be z.
template <class T>
void activate(ActivationArguments arguments, int64_t n, const T* z, T* y) {
  const T slope = T(arguments.negative_slope);
  with_activation(arguments.activation, [&](auto act) {
    using A = decltype(act);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = A::value(z[i], slope);
  });
}

// grad goes on through the activation.
template <class T>
void gate(ActivationArguments arguments, int64_t n, const T* saved, T* grad) {
  const T slope = T(arguments.negative_slope);
  with_activation(arguments.activation, [&](auto act) {
    using A = decltype(act);
    if constexpr (std::is_same_v<A, Act<Activation::identity>>) return;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) grad[i] = gradient<A>(grad[i], saved[i], slope);
  });
}

// Zeros in the columns of a panel's rows that are no samples. An infinite or NaN weight makes them NaN, and a NaN there
// would not vanish from a sum over the samples because the other factor is zero.
template <class T>
void clear_padding(int64_t rows, int64_t samples, T* x) {
  if (samples == panel) return;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = samples; i < panel; ++i) x[r * panel + i] = 0;
}

inline bool saves_output(ActivationArguments arguments) {
  return fastgan::saves_output(arguments.activation, arguments.negative_slope);
}

inline Finish forward_finish(ActivationArguments arguments) {
  if (arguments.activation == Activation::relu) return Finish::bias_relu;
  if (arguments.activation == Activation::leaky_relu && saves_output(arguments)) return Finish::bias_leaky;
  return Finish::bias;
}

inline Finish backward_finish(ActivationArguments arguments) {
  if (arguments.activation == Activation::relu) return Finish::gate_relu;
  if (arguments.activation == Activation::leaky_relu) return Finish::gate_leaky;
  return Finish::none;
}

// The gradient by a layer's input goes on through the activation before it.
template <class T>
struct GradientTarget {
  Panels<T> grad;
  Panels<T> saved;
  ActivationArguments activation;
  int64_t width;  // of the input's features, those from which a gradient is wanted: the first of them
};

// z element by element: f(panel index, first element, elements, z) writes z, which is then activated.
template <class T, class F>
void elementwise_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t batch,
                         const F& f) {
  const int64_t from = pass.worker.from(layer.out), to = pass.worker.to(layer.out);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    T* y = buffers.y.at(p);
    T* z = saves_output(layer.activation) ? y : buffers.saved.at(p);
    f(p, from, to, z);
    activate(layer.activation, (to - from) * panel, z + from * panel, y + from * panel);
    clear_padding(to - from, samples_in(pass.in_half(p), batch), y + from * panel);
  }
}

// As elementwise_forward: f writes the gradient by the layer's input.
template <class T, class F>
void elementwise_backward(const Pass& pass, const GradientTarget<T>& target, int64_t batch, const F& f) {
  const int64_t from = pass.worker.from(target.width), to = pass.worker.to(target.width);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    T* grad = target.grad.at(p);
    f(p, from, to, grad);
    gate(target.activation, (to - from) * panel, target.saved.at(p) + from * panel, grad + from * panel);
    clear_padding(to - from, samples_in(pass.in_half(p), batch), grad + from * panel);
  }
}

template <class T>
void dropout_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t batch) {
  if (layer.mask[0] != nullptr) {
    for (int64_t j = 0; j < pass.count(); ++j) {
      const int64_t p = pass.index(j), row = pass.in_half(p) * panel;
      const int64_t from = pass.worker.from(layer.out), to = pass.worker.to(layer.out);
      T* mask = buffers.mask + p * layer.out * panel;
      transpose(samples_in(pass.in_half(p), batch), to - from, layer.mask[pass.mask(p)] + row * layer.out + from,
                layer.out, mask + from * panel, panel);
      const T scale = T(layer.keep_scale);
      for (int64_t i = from * panel; i < to * panel; ++i) mask[i] *= scale;
    }
  }
  elementwise_forward(pass, layer, buffers, batch, [&](int64_t p, int64_t from, int64_t to, T* z) {
    const T *x = buffers.x.at(p), *mask = buffers.mask + p * layer.out * panel;
    for (int64_t i = from * panel; i < to * panel; ++i) z[i] = layer.mask[0] == nullptr ? x[i] : x[i] * mask[i];
  });
}

template <class T>
void dropout_backward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t batch,
                      const GradientTarget<T>& target) {
  elementwise_backward(pass, target, batch, [&](int64_t p, int64_t from, int64_t to, T* grad) {
    const T *g = buffers.grad_z.at(p), *mask = buffers.mask + p * layer.out * panel;
    for (int64_t i = from * panel; i < to * panel; ++i) grad[i] = layer.mask[0] == nullptr ? g[i] : g[i] * mask[i];
  });
}
