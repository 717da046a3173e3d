// Forward through all layers, in panels. Included once for each instruction set, inside its namespace, after
// step_linear.h.

// The samples of the worker's panels, of those from `first_sample` on, into panels.
template <class T>
void load_input(const Worker& worker, const Mlp<T>& mlp, int64_t first_sample, int64_t samples, const Panels<T>& to) {
  const int64_t width = mlp.layers[0].in, begin = worker.from(width), end = worker.to(width);
  for (int64_t p = worker.begin; p < worker.end; ++p) {
    const int64_t n = samples_in(p, samples);
    T* out = to.at(p);
    const T* in = mlp.input + (first_sample + p * panel) * mlp.row_stride;
    if (n < panel) std::memset(out + begin * panel, 0, (end - begin) * panel * sizeof(T));
    if (mlp.col_stride == 1) {
      transpose(n, end - begin, in + begin, mlp.row_stride, out + begin * panel, panel);
      continue;
    }
    for (int64_t c = begin; c < end; ++c)
      for (int64_t r = 0; r < n; ++r) out[c * panel + r] = in[r * mlp.row_stride + c * mlp.col_stride];
  }
}

// What the worker has computed of a layer, into rows.
template <class T>
void store_rows(const Worker& worker, int64_t width, int64_t first_sample, int64_t samples, const Panels<T>& from,
                T* rows) {
  const Tiles tiles(width);
  const int64_t begin = tiles.begin(worker.from(tiles.count)), end = tiles.begin(worker.to(tiles.count));
  for (int64_t p = worker.begin; p < worker.end; ++p)
    transpose(end - begin, samples_in(p, samples), from.at(p) + begin * panel, panel,
              rows + (first_sample + p * panel) * width + begin, width);
}

// Chunks of as many samples as `full` has panels for, then those that are left.
template <class T>
void work_on_mlp_forward(const Mlp<T>& mlp, const MlpForwardBuffers<T>& buffers, Team& full, Team& rest, int thread) {
  for (int64_t first = 0; first < mlp.batch; first += full.panels * panel) {
    const int64_t samples = std::min(full.panels * panel, mlp.batch - first);
    Team& team = panel_count(samples) == full.panels ? full : rest;
    const Worker worker(team, thread);
    const Pass pass{worker, 1, 0, 1};
    load_input(worker, mlp, first, samples, buffers.even);
    worker.layer_done();
    for (int l = 0; l < mlp.count; ++l) {
      const MlpLayer<T>& given = mlp.layers[l];
      StepLayer<T> layer;
      layer.kind = LayerKind::linear;
      layer.in = given.in, layer.out = given.out, layer.activation = given.activation;
      layer.weight.value = const_cast<T*>(given.weight), layer.bias.value = const_cast<T*>(given.bias);
      LayerBuffers<T> own;
      own.x = l % 2 == 0 ? buffers.even : buffers.odd;
      own.y = l % 2 == 0 ? buffers.odd : buffers.even;
      own.saved = saves_output(given.activation) ? own.y : buffers.z;
      linear_forward(pass, layer, own, samples);
      if (given.y != nullptr) store_rows(worker, given.out, first, samples, own.y, given.y);
      if (given.z != nullptr) store_rows(worker, given.out, first, samples, own.saved, given.z);
      worker.layer_done();
    }
    if (first + samples < mlp.batch) team.barrier.wait();
  }
}
