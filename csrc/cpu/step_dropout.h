// Dropout, or no more than an activation, on a worker's panels. Included once for each instruction set, inside its
// namespace, after step_elementwise.h.

template <class T>
void load_mask(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  const int64_t from = pass.worker.from(layer.out), to = pass.worker.to(layer.out);
  pass.for_members(1, [&](int64_t p, int64_t n, int64_t first, int64_t step, int64_t) {
    T* mask = buffers.mask + p * layer.out * panel;
    load_panel(n, StridedRows<T>{layer.mask[pass.mask(p)], layer.out, layer.out, 1}, first, step, from, to, mask);
    const T scale = T(layer.keep_scale);
    for (int64_t i = from * panel; i < to * panel; ++i) mask[i] *= scale;
  });
}

// out = x times the mask, of a worker's share of panel p.
template <class T>
void apply_mask(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t p, int64_t from, int64_t to,
                const T* x, T* out) {
  const T* mask = buffers.mask + p * layer.out * panel;
  for (int64_t i = from * panel; i < to * panel; ++i) out[i] = layer.mask[0] == nullptr ? x[i] : x[i] * mask[i];
}

template <class T>
void dropout_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  if (layer.mask[0] != nullptr) load_mask(pass, layer, buffers);
  elementwise_forward(pass, layer, buffers, [&](int64_t p, int64_t from, int64_t to, T* z) {
    apply_mask(layer, buffers, p, from, to, buffers.x.at(p), z);
  });
}

template <class T>
void dropout_backward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers,
                      const GradientTarget<T>& target) {
  elementwise_backward(pass, target, [&](int64_t p, int64_t from, int64_t to, T* grad) {
    apply_mask(layer, buffers, p, from, to, buffers.grad_z.at(p), grad);
  });
}
