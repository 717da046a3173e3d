// Linear layers, forward and backward on a worker's panels. Included once for each instruction set, inside its
// namespace, after layers.h; linear_amx.h has its place where products take bfloat16.

// Panels for which a tile of the weight serves once it is packed; their rows of one block of a sum fill a quarter of
// the second-level cache.
constexpr int64_t panels_at_once = 16;

template <class T>
void linear_forward(const Pass& pass, const LinearLayer<T>& layer, const LinearBuffers<T>& buffers, int64_t batch) {
  alignas(64) T tile[tile_rows * copied_stride<T>];
  const Tiles tiles(layer.out);
  const Epilogue epilogue = forward_epilogue(layer.activation);
  // Other activations take a pass over the tile while it is in the first-level cache.
  const bool more = epilogue == Epilogue::bias && layer.activation.activation != Activation::identity;
  const Panels<T> z = more ? buffers.saved : buffers.y;
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
          TileTask<T> task{};
          task.a = tile;
          task.b = buffers.x.at(p) + k * panel;
          task.k = length;
          task.c = z.at(p) + row * panel;
          task.accumulate = k > 0;
          task.epilogue = finished ? epilogue : Epilogue::none;
          task.bias = layer.bias == nullptr ? nullptr : layer.bias + row;
          task.slope = T(layer.activation.negative_slope);
          // The next tile's rows: as many as this sum is long in 32s, then the next panel fetches more.
          const int64_t fetched = (j - first) * ((length + panel - 1) / panel);
          task.fetch.from = tile;  // nothing
          if (fetched < height)
            task.fetch = {layer.weight + (row + height + fetched) * layer.in + k, layer.in, 64 / sizeof(T)};
          multiply<T, Storage::copied>(height, task);
          if (!finished) continue;
          T* const y = buffers.y.at(p) + row * panel;
          if (more) activate(layer.activation, height * panel, task.c, y);
          clear_padding(height, samples_in(pass.in_half(p), batch), y);
        }
      }
    }
  }
}

template <class T>
void linear_backward(const Pass& pass, const LinearLayer<T>& layer, const LinearBuffers<T>& buffers, int64_t batch,
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
          task.saved = target.saved.at(p) + row * panel;
          task.slope = T(target.activation.negative_slope);
          // The next tile's columns: where they begin, and with the next panel where they end.
          task.fetch.from = tile;  // nothing
          if (j - first < 2) task.fetch = {weight + height + (j - first) * (height - 1), panel * layer.in, layer.in};
          multiply<T, Storage::packed>(height, task);
          if (!finished) continue;
          if (more) activation_backward(target.activation, height * panel, task.saved, task.c);
          clear_padding(height, samples_in(pass.in_half(p), batch), task.c);
        }
      }
    }
  }
}
