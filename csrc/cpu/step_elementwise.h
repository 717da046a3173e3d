// Layers that are element by element, on a worker's panels. Included once for each instruction set, inside its
// namespace, after panels/layers.h.

// z element by element: f(panel index, first element, elements, z) writes z, which is then activated.
template <class T, class F>
void elementwise_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, const F& f) {
  const int64_t from = pass.worker.from(layer.out), to = pass.worker.to(layer.out);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    T* y = buffers.y.at(p);
    T* z = saves_output(layer.activation) ? y : buffers.saved.at(p);
    f(p, from, to, z);
    activate(layer.activation, (to - from) * panel, z + from * panel, y + from * panel);
    clear_padding(to - from, pass.samples(p), y + from * panel);
  }
}

// As elementwise_forward: f writes the gradient by the layer's input.
template <class T, class F>
void elementwise_backward(const Pass& pass, const GradientTarget<T>& target, const F& f) {
  const int64_t from = pass.worker.from(target.width), to = pass.worker.to(target.width);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    T* grad = target.grad.at(p);
    f(p, from, to, grad);
    target.pass_on(pass, p, from, to - from, grad + from * panel);
  }
}
