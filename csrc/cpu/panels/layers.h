// What every layer on panels shares. Included once for each instruction set, inside its namespace, after product.h.

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

// grad goes on through the activation. Where given, `curvature` takes it times the second derivative, and `added` is
// added afterwards.
template <class T>
void activation_backward(ActivationArguments arguments, int64_t n, const T* saved, T* grad, T* curvature = nullptr,
                         const T* added = nullptr) {
  const T slope = T(arguments.negative_slope);
  with_activation(arguments.activation, [&](auto act) {
    using A = decltype(act);
    if (curvature != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) curvature[i] = grad[i] * A::dd(saved[i], slope);
    }
    if constexpr (!std::is_same_v<A, Act<Activation::identity>>) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) grad[i] = gradient<A>(grad[i], saved[i], slope);
    }
    if (added == nullptr) return;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) grad[i] += added[i];
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

inline Epilogue forward_epilogue(ActivationArguments arguments) {
  if (arguments.activation == Activation::relu) return Epilogue::bias_relu;
  if (arguments.activation == Activation::leaky_relu && saves_output(arguments)) return Epilogue::bias_leaky_relu;
  return Epilogue::bias;
}

inline Epilogue backward_epilogue(ActivationArguments arguments) {
  if (arguments.activation == Activation::relu) return Epilogue::relu_backward;
  if (arguments.activation == Activation::leaky_relu) return Epilogue::leaky_relu_backward;
  return Epilogue::none;
}

// The gradient by a layer's input goes on through the activation before it.
template <class T>
struct GradientTarget {
  Panels<T> grad;
  Panels<T> saved;
  ActivationArguments activation;
  int64_t width;  // of the input's features, those from which a gradient is wanted: the first of them
  // As activation_backward takes them, or null; `added` to the parts whose bit is set.
  Panels<T> curvature{}, added{};
  unsigned added_parts = 0;

  // Rows from `row` on of a panel, in place or elsewhere.
  void pass_on(const Pass& pass, int64_t p, int64_t row, int64_t rows, T* at) const {
    const int64_t from = row * panel;
    const bool adds = added.data != nullptr && (added_parts >> pass.part(p) & 1) != 0;
    activation_backward(activation, rows * panel, saved.data == nullptr ? nullptr : saved.at(p) + from, at,
                        curvature.data == nullptr ? nullptr : curvature.at(p) + from,
                        adds ? added.at(p) + from : nullptr);
    clear_padding(rows, pass.samples(p), at);
  }
};
