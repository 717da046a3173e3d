// Dropout, or no more than an activation, on a worker's panels. Included once for each instruction set, inside its
// namespace, after step_elementwise.h.

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
