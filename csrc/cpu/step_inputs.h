// What a step's networks are given. Included once for each instruction set, inside its namespace, after panels/rows.h.

// The inputs of D are made of `pac` samples, each with its label beside it.
template <class T>
int64_t member_width(const StepProblem<T>& problem) {
  return problem.discriminator.in() / problem.pac;
}

// The labels in one-hot form, after the first `width` features of each sample.
template <class T>
void load_labels(const Pass& pass, const StepProblem<T>& problem, const int64_t* labels, int64_t width, int64_t pac,
                 const Panels<T>& to) {
  if (problem.classes == 0 || pass.worker.part != 0) return;
  pass.for_members(pac, [&](int64_t p, int64_t n, int64_t first, int64_t step, int64_t member) {
    T* out = to.at(p) + (member * (width + problem.classes) + width) * panel;
    std::memset(out, 0, problem.classes * panel * sizeof(T));
    for (int64_t r = 0; r < n; ++r) out[labels[first + r * step] * panel + r] = T(1);
  });
}

// Noise on the samples of one part of D's batch, which are at from(panel, member, their place in D's input). There is
// none any more where the scale is zero.
template <class T, class From>
void add_instance_noise(const Pass& pass, const StepProblem<T>& problem, int half, const Panels<T>& input,
                        const From& from) {
  const int64_t member = member_width(problem), width = member - problem.classes;
  const StridedRows<T> noise{problem.instance_noise[half], width, width, 1};
  const T scale = T(problem.noise_scale);
  const int64_t begin = pass.worker.from(width), end = pass.worker.to(width);
  alignas(64) T block[panel * panel];
  pass.for_members(problem.pac, [&](int64_t p, int64_t n, int64_t first, int64_t step, int64_t k) {
    T* const out = input.at(p) + k * member * panel;
    const T* const x = from(p, k, out);
    for (int64_t c = begin; c < end; c += panel) {
      const int64_t columns = std::min(panel, end - c);
      StridedRows<T> shifted = noise;
      shifted.data += c;
      if (scale == 0) {
        std::memcpy(out + c * panel, x + c * panel, columns * panel * sizeof(T));
        continue;
      }
      load_panel(n, shifted, first, step, 0, columns, block);
      for (int64_t i = 0; i < columns * panel; ++i) out[c * panel + i] = x[c * panel + i] + scale * block[i];
    }
  });
}

// The points between real data and fakes at which the penalty gp is taken, with the labels of the real data.
template <class T>
void mix_inputs(const Pass& between, const StepProblem<T>& problem, const Panels<T>& input) {
  const int64_t member = member_width(problem), width = member - problem.classes, in = problem.discriminator.in();
  const int64_t begin = between.worker.from(in), end = between.worker.to(in);
  for (int64_t j = 0; j < between.count(); ++j) {
    const int64_t p = between.index(j), n = between.samples(p), first = between.in_part(p) * panel;
    const T *real = input.at(p - 2), *fake = input.at(p - 1);
    T *out = input.at(p), u[panel] = {};
    for (int64_t i = 0; i < n; ++i) u[i] = problem.mix[first + i];
    for (int64_t c = begin; c < end; ++c) {
      const int64_t at = c * panel;
      if (c % member < width)
        for (int64_t i = 0; i < panel; ++i) out[at + i] = u[i] * real[at + i] + (T(1) - u[i]) * fake[at + i];
      else
        std::memcpy(out + at, real + at, panel * sizeof(T));
    }
  }
}
