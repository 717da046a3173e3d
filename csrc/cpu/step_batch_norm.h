// Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1) on panels, each part of a pass with its
// own statistics. Included once for each instruction set, inside its namespace, after step_elementwise.h.
//
// Each worker sums its panels; the sums of all panels are added in order, so the result does not depend on the number
// of threads.

// Mean and 1 / standard deviation of each feature, from each panel's mean and sum of squared differences from it, put
// together two by two (Chan, Golub and LeVeque 1983).
template <class T>
void batch_moments(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  const Worker& worker = pass.worker;
  const int64_t width = layer.out;
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j), n = pass.samples(p);
    const T* x = buffers.x.at(p);
    T* sums = buffers.sums + p * 2 * width;
    for (int64_t c = worker.from(width); n > 0 && c < worker.to(width); ++c) {
      T total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < n; ++i) total += x[c * panel + i];
      const T mean = total / T(n);
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < n; ++i) squares += (x[c * panel + i] - mean) * (x[c * panel + i] - mean);
      sums[c] = mean;
      sums[width + c] = squares;
    }
  }
  worker.team.barrier.wait();
  const int64_t threads = worker.team.threads, thread = worker.thread;
  double momentum = layer.momentum;
  int64_t passes = 0;
  for (const int part : pass) {
    ++passes;
    if (layer.batches != nullptr && layer.cumulative) momentum = 1.0 / double(*layer.batches + passes);
    T* moments = buffers.moments + part * 2 * width;
    const double batch = double(pass.batch(part));
    for (int64_t c = width * thread / threads; c < width * (thread + 1) / threads; ++c) {
      double mean = 0, squares = 0, total = 0, before = 0;
      for (int64_t i = 0; i < pass.panels(); ++i) {
        const int64_t p = pass.panel_of(part, i);
        const double n = double(pass.samples(p));
        if (n == 0) break;
        const T* sums = buffers.sums + p * 2 * width;
        const double difference = sums[c] - mean;
        total += sums[c] * n;
        mean += difference * n / (before + n);
        squares += sums[width + c] + difference * difference * before * n / (before + n);
        before += n;
      }
      if (mean != mean) mean = total / batch;  // an infinite mean has no difference from the next
      moments[c] = T(mean);
      moments[width + c] = T(1 / std::sqrt(squares / batch + layer.eps));
      if (layer.running_mean == nullptr) continue;
      layer.running_mean[c] = moving(layer.running_mean[c], mean, momentum);
      layer.running_var[c] = moving(layer.running_var[c], squares / (batch - 1), momentum);
    }
  }
  worker.team.barrier.wait();
  if (thread == 0 && layer.batches != nullptr) *layer.batches += passes;
}

template <class T>
void running_moments(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  const Worker& worker = pass.worker;
  const int64_t width = layer.out, threads = worker.team.threads;
  const int64_t thread = worker.thread;
  for (const int part : pass) {
    T* moments = buffers.moments + part * 2 * width;
    for (int64_t c = width * thread / threads; c < width * (thread + 1) / threads; ++c) {
      moments[c] = layer.running_mean[c];
      moments[width + c] = T(1 / std::sqrt(double(layer.running_var[c]) + layer.eps));
    }
  }
  worker.team.barrier.wait();
}

template <class T>
void batch_norm_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  layer.batch_statistics ? batch_moments(pass, layer, buffers) : running_moments(pass, layer, buffers);
  const int64_t width = layer.out;
  elementwise_forward(pass, layer, buffers, [&](int64_t p, int64_t from, int64_t to, T* z) {
    const T* x = buffers.x.at(p);
    const T* moments = buffers.moments + pass.part(p) * 2 * width;
    for (int64_t c = from; c < to; ++c) {
      const T weight = layer.weight.value == nullptr ? T(1) : layer.weight.value[c];
      const T bias = layer.bias.value == nullptr ? T(0) : layer.bias.value[c];
      const T scale = moments[width + c] * weight, shift = bias - moments[c] * scale;
#pragma omp simd
      for (int64_t i = c * panel; i < (c + 1) * panel; ++i) z[i] = x[i] * scale + shift;
    }
  });
}

// Leaves the sums of grad_z and of grad_z times the normalised input, over each part, in the sums of its first panel:
// they are the gradients by bias and weight.
template <class T>
void batch_norm_sums(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  const Worker& worker = pass.worker;
  const int64_t width = layer.out;
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j), n = pass.samples(p);
    const T *x = buffers.x.at(p), *g = buffers.grad_z.at(p);
    const T* moments = buffers.moments + pass.part(p) * 2 * width;
    T* sums = buffers.sums + p * 2 * width;
    for (int64_t c = worker.from(width); c < worker.to(width); ++c) {
      T total = 0, product = 0;
#pragma omp simd reduction(+ : total, product)
      for (int64_t i = c * panel; i < c * panel + n; ++i) {
        total += g[i];
        product += g[i] * ((x[i] - moments[c]) * moments[width + c]);
      }
      sums[c] = total;
      sums[width + c] = product;
    }
  }
  worker.team.barrier.wait();
  const int64_t threads = worker.team.threads, thread = worker.thread;
  for (const int part : pass) {
    T* first = buffers.sums + pass.panel_of(part, 0) * 2 * width;
    for (int64_t c = 2 * width * thread / threads; c < 2 * width * (thread + 1) / threads; ++c) {
      double total = 0;
      for (int64_t i = 0; i < pass.panels(); ++i) total += buffers.sums[pass.panel_of(part, i) * 2 * width + c];
      first[c] = T(total);
    }
  }
  worker.team.barrier.wait();
}

// After batch_norm_sums.
template <class T>
void batch_norm_backward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers,
                         const GradientTarget<T>& target) {
  const int64_t width = layer.out;
  elementwise_backward(pass, target, [&](int64_t p, int64_t from, int64_t to, T* grad) {
    const T *x = buffers.x.at(p), *g = buffers.grad_z.at(p);
    const int part = pass.part(p);
    const T* moments = buffers.moments + part * 2 * width;
    const T* sums = buffers.sums + pass.panel_of(part, 0) * 2 * width;
    const T batch = T(pass.batch(part));
    for (int64_t c = from; c < to; ++c) {
      const T scale = moments[width + c] * (layer.weight.value == nullptr ? T(1) : layer.weight.value[c]);
      if (!layer.batch_statistics) {
        for (int64_t i = c * panel; i < (c + 1) * panel; ++i) grad[i] = scale * g[i];
        continue;
      }
      const T mean = sums[c] / batch, slope = sums[width + c] / batch;
#pragma omp simd
      for (int64_t i = c * panel; i < (c + 1) * panel; ++i) {
        const T normal = (x[i] - moments[c]) * moments[width + c];
        grad[i] = scale * (g[i] - mean - normal * slope);
      }
    }
  });
}
