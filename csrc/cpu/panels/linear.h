// Linear layers, forward and backward on a worker's panels. Included once for each instruction set, inside its
// namespace, after layers.h; linear_amx.h has its place where products take bfloat16.

// Panels for which a tile of the weight serves once it is packed; their rows of one block of a sum fill a quarter of
// the second-level cache.
constexpr int64_t panels_at_once = 16;

// out = weight x on a pass's panels, through an epilogue: finish(panel, row, rows, sums) is called for each tile
// afterwards.
template <class T, class Finish>
void multiply_weight(const Pass& pass, const LinearLayer<T>& layer, const Panels<T>& x, const Panels<T>& out,
                     const TileTask<T>& like, const Panels<T>& saved, const Finish& finish) {
  alignas(64) T tile[tile_rows * copied_stride<T>];
  const Tiles tiles(layer.out);
  const Worker& worker = pass.worker;
  for (int64_t first = 0; first < pass.count(); first += panels_at_once) {
    const int64_t last = std::min(pass.count(), first + panels_at_once);
    for (int64_t k = 0; k < layer.in; k += sum_block<T>) {
      const int64_t length = std::min(sum_block<T>, layer.in - k);
      const bool finished = k + length == layer.in;
      for (int64_t i = worker.from(tiles.count); i < worker.to(tiles.count); ++i) {
        const int64_t row = tiles.begin(i);
        const int height = tiles.height(i);
        for (int m = 0; m < height; ++m)
          std::memcpy(tile + m * copied_stride<T>, layer.weight + (row + m) * layer.in + k, length * sizeof(T));
        for (int64_t j = first; j < last; ++j) {
          const int64_t p = pass.index(j);
          TileTask<T> task = like;
          task.a = tile;
          task.b = x.at(p) + k * panel;
          task.k = length;
          task.c = out.at(p) + row * panel;
          task.accumulate = k > 0;
          if (!finished) task.epilogue = Epilogue::none;
          if (like.bias != nullptr) task.bias = like.bias + row;
          if (saved.data != nullptr) task.saved = saved.at(p) + row * panel;
          // The next tile's rows: as many as this sum is long in 32s, then the next panel fetches more.
          const int64_t fetched = (j - first) * ((length + panel - 1) / panel);
          task.fetch.from = tile;  // nothing
          if (fetched < height)
            task.fetch = {layer.weight + (row + height + fetched) * layer.in + k, layer.in, 64 / sizeof(T)};
          multiply<T, Storage::copied>(height, task);
          if (finished) finish(p, row, height, task.c);
        }
      }
    }
  }
}

template <class T>
void linear_forward(const Pass& pass, const LinearLayer<T>& layer, const LinearBuffers<T>& buffers) {
  TileTask<T> task{};
  task.epilogue = forward_epilogue(layer.activation);
  task.bias = layer.bias;
  task.slope = T(layer.activation.negative_slope);
  // Other activations take a pass over the tile while it is in the first-level cache.
  const bool more = task.epilogue == Epilogue::bias && layer.activation.activation != Activation::identity;
  multiply_weight(pass, layer, buffers.x, more ? buffers.saved : buffers.y, task, Panels<T>{},
                  [&](int64_t p, int64_t row, int height, const T* z) {
                    T* const y = buffers.y.at(p) + row * panel;
                    if (more) activate(layer.activation, height * panel, z, y);
                    clear_padding(height, pass.samples(p), y);
                  });
}

template <class T>
void linear_backward(const Pass& pass, const LinearLayer<T>& layer, const LinearBuffers<T>& buffers,
                     const GradientTarget<T>& target) {
  alignas(64) T tile[sum_block<T> * packed_stride];
  const Tiles tiles(target.width);
  const Epilogue epilogue = backward_epilogue(target.activation);
  const bool more = epilogue == Epilogue::none && target.activation.activation != Activation::identity;
  const Worker& worker = pass.worker;
  for (int64_t first = 0; first < pass.count(); first += panels_at_once) {
    const int64_t last = std::min(pass.count(), first + panels_at_once);
    for (int64_t k = 0; k < layer.out; k += sum_block<T>) {
      const int64_t length = std::min(sum_block<T>, layer.out - k);
      const bool finished = k + length == layer.out;
      for (int64_t i = worker.from(tiles.count); i < worker.to(tiles.count); ++i) {
        const int64_t row = tiles.begin(i);
        const int height = tiles.height(i);
        const T* weight = layer.weight + k * layer.in + row;
        if (row + packed_stride <= layer.in) {
          for (int64_t n = 0; n < length; ++n)
            std::memcpy(tile + n * packed_stride, weight + n * layer.in, packed_stride * sizeof(T));
        } else {
          for (int64_t n = 0; n < length; ++n)
            std::memcpy(tile + n * packed_stride, weight + n * layer.in, height * sizeof(T));
        }
        for (int64_t j = first; j < last; ++j) {
          const int64_t p = pass.index(j);
          TileTask<T> task{};
          task.a = tile;
          task.b = buffers.grad_z.at(p) + k * panel;
          task.k = length;
          task.c = target.grad.at(p) + row * panel;
          task.accumulate = k > 0;
          task.epilogue = finished ? epilogue : Epilogue::none;
          if (target.saved.data != nullptr) task.saved = target.saved.at(p) + row * panel;
          task.slope = T(target.activation.negative_slope);
          // The next tile's columns: where they begin, and with the next panel where they end.
          task.fetch.from = tile;  // nothing
          if (j - first < 2) task.fetch = {weight + height + (j - first) * (height - 1), panel * layer.in, layer.in};
          multiply<T, Storage::packed>(height, task);
          if (!finished) continue;
          if (more)
            target.pass_on(pass, p, row, height, task.c);
          else
            clear_padding(height, pass.samples(p), task.c);
        }
      }
    }
  }
}
