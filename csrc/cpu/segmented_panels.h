// The segmented activation on panels: features are rows of 32 samples, so that a softmax runs down the rows and every
// loop is 32 samples wide, however narrow the run. Included once for each instruction set, inside its namespace, after
// panels/rows.h.

// With the Act of a run that is not a softmax.
template <class F>
void with_pointwise(SegmentKind kind, const F& f) {
  if (kind == SegmentKind::tanh) return f(Act<Activation::tanh>());
  f(Act<Activation::identity>());
}

// The sum over a run's columns of a b, for each sample, in order.
template <class T>
void product_sums(int64_t width, const T* a, const T* b, T* sums) {
  for (int64_t i = 0; i < panel; ++i) sums[i] = 0;
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) sums[i] += a[c * panel + i] * b[c * panel + i];
}

// x becomes y; `noise` is null but for a gumbel_softmax.
template <class T>
void softmax_forward(int64_t width, T factor, const T* noise, T* x) {
  alignas(64) T most[panel], sums[panel];
  for (int64_t i = 0; i < panel; ++i) most[i] = -std::numeric_limits<T>::infinity(), sums[i] = 0;
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) {
      const T v = noise == nullptr ? x[c * panel + i] : x[c * panel + i] + noise[c * panel + i];
      x[c * panel + i] = v;
      most[i] = select(most[i] < v, v, most[i]);
    }
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) {
      const T e = exp_((x[c * panel + i] - most[i]) * factor);
      x[c * panel + i] = e;
      sums[i] += e;
    }
  for (int64_t i = 0; i < panel; ++i) sums[i] = T(1) / sums[i];
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) x[c * panel + i] *= sums[i];
}

// A run of x becomes y.
template <class T>
void segment_forward(const Segments& segments, const Segment& run, const T* noise, T* x) {
  if (is_softmax(run.kind)) return softmax_forward(int64_t{run.width}, T(segments.factor(run)), noise, x);
  with_pointwise(run.kind, [&](auto act) {
    using A = decltype(act);
#pragma omp simd
    for (int64_t i = 0; i < run.width * panel; ++i) x[i] = A::value(x[i], T(0));
  });
}

// The gradient by y of a run becomes that by x.
template <class T>
void segment_backward(const Segments& segments, const Segment& run, const T* y, T* grad) {
  if (is_softmax(run.kind)) {
    alignas(64) T mean[panel];
    const T factor = T(segments.factor(run));
    product_sums(run.width, y, grad, mean);
    for (int64_t c = 0; c < run.width; ++c)
#pragma omp simd
      for (int64_t i = 0; i < panel; ++i)
        grad[c * panel + i] = softmax_gradient(y[c * panel + i], grad[c * panel + i], mean[i], factor);
    return;
  }
  with_pointwise(run.kind, [&](auto act) {
    using A = decltype(act);
#pragma omp simd
    for (int64_t i = 0; i < run.width * panel; ++i) grad[i] = gradient<A>(grad[i], y[i], T(0));
  });
}

// Of segment_backward against c: c becomes the derivative by the gradient, which becomes that by y.
template <class T>
void segment_double_backward(const Segments& segments, const Segment& run, const T* y, T* grad, T* c) {
  if (is_softmax(run.kind)) {
    alignas(64) T mean[panel], mean_of_c[panel];
    const T factor = T(segments.factor(run));
    product_sums(run.width, y, grad, mean);
    product_sums(run.width, y, c, mean_of_c);
    for (int64_t k = 0; k < run.width; ++k)
#pragma omp simd
      for (int64_t i = 0; i < panel; ++i) {
        const T v = grad[k * panel + i], t = c[k * panel + i];
        c[k * panel + i] = softmax_gradient(y[k * panel + i], t, mean_of_c[i], factor);
        grad[k * panel + i] = softmax_by_output(v, t, mean[i], mean_of_c[i], factor);
      }
    return;
  }
  with_pointwise(run.kind, [&](auto act) {
    using A = decltype(act);
#pragma omp simd
    for (int64_t i = 0; i < run.width * panel; ++i) {
      const T v = grad[i], t = c[i];
      c[i] = gradient<A>(t, y[i], T(0));
      grad[i] = pointwise_by_output<A>(y[i], v, t);
    }
  });
}

// Columns [begin, end) of n rows into a panel, and back. `rows` is for those of another type.
template <class T, class S>
void load_columns(int64_t n, const S* matrix, int64_t columns, int64_t begin, int64_t end, T* rows, T* out) {
  const int64_t width = end - begin;
  clear_padding(width, n, out);
  if constexpr (std::is_same_v<S, T>) {
    transpose(n, width, matrix + begin, columns, out, panel);
  } else {
    for (int64_t r = 0; r < n; ++r)
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) rows[r * width + c] = load(matrix + r * columns + begin + c);
    transpose(n, width, rows, width, out, panel);
  }
}
template <class T, class S>
void store_columns(int64_t n, const T* in, int64_t begin, int64_t end, int64_t columns, T* rows, S* matrix) {
  const int64_t width = end - begin;
  if constexpr (std::is_same_v<S, T>) {
    transpose(width, n, in, panel, matrix + begin, columns);
  } else {
    transpose(width, n, in, panel, rows, width);
    for (int64_t r = 0; r < n; ++r)
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) store(matrix + r * columns + begin + c, rows[r * width + c]);
  }
}

// Panels [begin, end) of the rows.
template <class T>
template <class S>
void Kernels<T>::segmented(const Segments& segments, const SegmentedPass<S>& pass, const SegmentedBuffers<T>& buffers,
                           int64_t begin, int64_t end) {
  const int64_t columns = segments.columns;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * panel, n = std::min(panel, pass.rows - first);
    for (int s = 0; s < buffers.count; ++s) {
      const SegmentStrip& strip = buffers.strips[s];
      const auto read = [&](const S* matrix, T* to) {
        load_columns(n, matrix + first * columns, columns, strip.begin, strip.end, buffers.rows, to);
      };
      const auto write = [&](const T* from, S* matrix) {
        store_columns(n, from, strip.begin, strip.end, columns, buffers.rows, matrix + first * columns);
      };
      T* const* at = buffers.panels;
      if (pass.input != nullptr) {
        read(pass.input, at[0]);
        if (strip.noise_end > strip.noise_begin)
          load_columns(n, pass.noise + first * segments.gumbel_columns, segments.gumbel_columns, strip.noise_begin,
                       strip.noise_end, buffers.rows, at[1]);
      } else {
        read(pass.output, at[0]);
        read(pass.grad_output, at[1]);
        if (pass.cotangent != nullptr) read(pass.cotangent, at[2]);
      }
      for (int i = strip.first; i < strip.last; ++i) {
        const Segment& run = segments.list[i];
        const int64_t from = (run.begin - strip.begin) * panel;
        const bool draws = run.kind == SegmentKind::gumbel_softmax;
        if (pass.input != nullptr)
          segment_forward(segments, run, draws ? at[1] + (run.noise - strip.noise_begin) * panel : nullptr,
                          at[0] + from);
        else if (pass.cotangent == nullptr)
          segment_backward(segments, run, at[0] + from, at[1] + from);
        else
          segment_double_backward(segments, run, at[0] + from, at[1] + from, at[2] + from);
      }
      if (pass.input != nullptr) {
        write(at[0], pass.y);
      } else if (pass.cotangent == nullptr) {
        write(at[1], pass.grad_input);
      } else {
        write(at[2], pass.by_grad_output);
        write(at[1], pass.by_output);
      }
    }
  }
}
