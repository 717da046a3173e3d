// Forward through all layers, in panels. Included once for each instruction set, inside its namespace, after
// panels/linear.h.

// Chunks of as many samples as `full` has panels for, then those that are left.
template <class T>
void Kernels<T>::mlp_forward(const Mlp<T>& mlp, const MlpForwardBuffers<T>& buffers, Team& full, Team& rest,
                             int thread) {
  for (int64_t first = 0; first < mlp.batch; first += full.panels * panel) {
    const int64_t samples = std::min(full.panels * panel, mlp.batch - first);
    Team& team = panel_count(samples) == full.panels ? full : rest;
    const Worker worker(team, thread);
    const Pass pass(worker, &samples);
    StridedRows<T> input = mlp.input;
    input.data += first * input.row_stride;
    load_rows(pass, input, buffers.even);
    worker.layer_done();
    for (int l = 0; l < mlp.count; ++l) {
      const MlpLayer<T>& layer = mlp.layers[l];
      LinearBuffers<T> own;
      own.x = l % 2 == 0 ? buffers.even : buffers.odd;
      own.y = l % 2 == 0 ? buffers.odd : buffers.even;
      own.saved = saves_output(layer.activation) ? own.y : buffers.z;
      linear_forward(pass, layer, own);
      if (layer.y != nullptr) store_rows(worker, layer.out, first, samples, own.y, layer.y);
      if (layer.z != nullptr) store_rows(worker, layer.out, first, samples, own.saved, layer.z);
      worker.layer_done();
    }
    if (first + samples < mlp.batch) team.barrier.wait();
  }
}
