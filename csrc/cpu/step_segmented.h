// The segmented activation as a layer of G, and the condition's cross-entropy by its input. Included once for each
// instruction set, inside its namespace, after segmented_panels.h and step_elementwise.h.

// Calls f(run) of the runs that begin in this worker's share of the columns.
template <class F>
void for_own_runs(const Worker& worker, const Segments& segments, const F& f) {
  const int64_t from = worker.from(segments.columns), to = worker.to(segments.columns);
  for (int i = 0; i < segments.count; ++i)
    if (segments.list[i].begin >= from && segments.list[i].begin < to) f(segments.list[i]);
}

template <class T>
void segmented_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  const Segments& segments = layer.segments;
  const int64_t columns = segments.gumbel_columns;
  int64_t drawn_from = columns, drawn_to = 0;
  for_own_runs(pass.worker, segments, [&](const Segment& run) {
    if (run.kind != SegmentKind::gumbel_softmax) return;
    drawn_from = std::min(drawn_from, int64_t{run.noise}), drawn_to = int64_t{run.noise} + run.width;
  });
  pass.for_members(1, [&](int64_t p, int64_t n, int64_t first, int64_t step, int64_t) {
    T* const draws = buffers.mask + p * columns * panel;
    if (drawn_from < drawn_to)
      load_panel(n, StridedRows<T>{layer.gumbel, columns, columns, 1}, first, step, drawn_from, drawn_to, draws);
    for_own_runs(pass.worker, segments, [&](const Segment& run) {
      const int64_t at = run.begin * panel;
      T* const y = buffers.y.at(p) + at;
      std::memcpy(y, buffers.x.at(p) + at, run.width * panel * sizeof(T));
      const bool draw = run.kind == SegmentKind::gumbel_softmax;
      segment_forward(segments, run, draw ? draws + run.noise * panel : nullptr, y);
      clear_padding(run.width, n, y);
    });
  });
}

// Adds the derivative of the cross-entropy of a run against the level that is asked for, of the samples that are asked
// for one of this run: softmax(x) less one at that level.
template <class T>
void add_cross_entropy(const StepLayer<T>& layer, const Segment& run, int64_t n, int64_t first, int64_t step,
                       const T* x, T* grad) {
  const int64_t width = run.width, before = run.noise - layer.asked_from;
  alignas(64) int32_t level[panel];
  bool is_asked = false;
  for (int64_t i = 0; i < panel; ++i) {
    const int64_t at = i < n ? layer.asked[first + i * step] - before : -1;
    level[i] = at >= 0 && at < width ? int32_t(at) : -1;
    is_asked = is_asked || level[i] >= 0;
  }
  if (!is_asked) return;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  alignas(64) T most[panel], sums[panel];
  for (int64_t i = 0; i < panel; ++i) most[i] = -infinity, sums[i] = 0;
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) most[i] = select(most[i] < x[c * panel + i], x[c * panel + i], most[i]);
  // As torch.logsumexp: of an infinite logit the others have no share, and its own is NaN.
  for (int64_t i = 0; i < panel; ++i) most[i] = select(abs_(most[i]) == infinity, T(0), most[i]);
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) sums[i] += exp_(x[c * panel + i] - most[i]);
  const T scale = T(layer.asked_scale);
  for (int64_t c = 0; c < width; ++c)
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) {
      const T share = exp_(x[c * panel + i] - most[i]) / sums[i];
      const T more = scale * (share - select(level[i] == int32_t(c), T(1), T(0)));
      grad[c * panel + i] += select(level[i] >= 0, more, T(0));
    }
}

template <class T>
void segmented_backward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers,
                        const GradientTarget<T>& target) {
  const Segments& segments = layer.segments;
  pass.for_members(1, [&](int64_t p, int64_t n, int64_t first, int64_t step, int64_t) {
    for_own_runs(pass.worker, segments, [&](const Segment& run) {
      const int64_t at = run.begin * panel;
      T* const grad = target.grad.at(p) + at;
      std::memcpy(grad, buffers.grad_z.at(p) + at, run.width * panel * sizeof(T));
      segment_backward(segments, run, buffers.y.at(p) + at, grad);
      if (layer.asked != nullptr && run.kind == SegmentKind::gumbel_softmax && run.noise >= layer.asked_from)
        add_cross_entropy(layer, run, n, first, step, buffers.x.at(p) + at, grad);
      target.pass_on(pass, p, run.begin, run.width, grad);
    });
  });
}
