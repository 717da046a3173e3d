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

// grad goes on through the activation.
template <class T>
void activation_backward(ActivationArguments arguments, int64_t n, const T* saved, T* grad) {
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
};
