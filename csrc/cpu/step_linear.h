// Linear layers, forward and backward on a worker's panels. Included once for each instruction set, inside its
// namespace, after step_product.h and step_layers.h.

// Panels for which a tile of the weight serves once it is packed; their rows of one block of a sum fill a quarter of
// the second-level cache.
constexpr int64_t panels_at_once = 16;

template <class T>
void linear_forward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t batch) {
  alignas(64) T tile[tile_rows * copied_stride<T>];
  const Tiles tiles(layer.out);
  const Finish finish = forward_finish(layer.activation);
  // Other activations take a pass over the tile while it is in the first-level cache.
  const bool more = finish == Finish::bias && layer.activation.activation != Activation::identity;
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
          std::memcpy(tile + m * copied_stride<T>, layer.weight.value + (row + m) * layer.in + k, length * sizeof(T));
        for (int64_t j = first; j < last; ++j) {
          const int64_t p = pass.index(j);
          TileTask<T> task{};
          task.a = tile;
          task.b = buffers.x.at(p) + k * panel;
          task.k = length;
          task.c = z.at(p) + row * panel;
          task.accumulate = k > 0;
          task.finish = finished ? finish : Finish::none;
          task.bias = layer.bias.value == nullptr ? nullptr : layer.bias.value + row;
          task.slope = T(layer.activation.negative_slope);
          // The next tile's rows: as many as this sum is long in 32s, then the next panel fetches more.
          const int64_t fetched = (j - first) * ((length + panel - 1) / panel);
          task.fetch.from = tile;  // nothing
          if (fetched < height)
            task.fetch = {layer.weight.value + (row + height + fetched) * layer.in + k, layer.in, 64 / sizeof(T)};
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
void linear_backward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t batch,
                     const GradientTarget<T>& target) {
  alignas(64) T tile[sum_block<T> * packed_stride];
  const Tiles tiles(target.width);
  const Finish finish = backward_finish(target.activation);
  const bool more = finish == Finish::none && target.activation.activation != Activation::identity;
  const Worker& worker = pass.worker;
  for (int64_t first = 0; first < pass.count(); first += panels_at_once) {
    const int64_t last = std::min(pass.count(), first + panels_at_once);
    for (int64_t k = 0; k < layer.out; k += sum_block<T>) {
      const int64_t length = std::min(sum_block<T>, layer.out - k);
      const bool finished = k + length == layer.out;
      for (int64_t i = worker.from(tiles.count); i < worker.to(tiles.count); ++i) {
        const int64_t row = tiles.begin(i);
        const int height = tiles.height(i);
        const T* weight = layer.weight.value + k * layer.in + row;
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
          task.finish = finished ? finish : Finish::none;
          task.saved = target.saved.at(p) + row * panel;
          task.slope = T(target.activation.negative_slope);
          // The next tile's columns: where they begin, and with the next panel where they end.
          task.fetch.from = tile;  // nothing
          if (j - first < 2) task.fetch = {weight + height + (j - first) * (height - 1), panel * layer.in, layer.in};
          multiply<T, Storage::packed>(height, task);
          if (!finished) continue;
          if (more) gate(target.activation, height * panel, task.saved, task.c);
          clear_padding(height, samples_in(pass.in_half(p), batch), task.c);
        }
      }
    }
  }
}

// x with the samples as rows, for the weight gradient.
template <class T>
void turn_input(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels) {
  if (layer.in <= thin_width) return;
  const int64_t blocks = (layer.in + panel - 1) / panel;
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    for (int64_t block = pass.worker.from(blocks); block < pass.worker.to(blocks); ++block)
      transpose(std::min(panel, layer.in - block * panel), panel, buffers.x.at(p) + block * panel * panel, panel,
                buffers.x_rows + (block * panels + p) * panel * panel, panel);
  }
}

// Sums over the samples of the panels [first, last) of the products of rows of grad_z and rows of x: tile[m][i], for
// thin inputs.
template <class T>
void thin_gradient(const LayerBuffers<T>& buffers, int64_t first, int64_t last, int64_t row, int rows, int64_t in,
                   T* tile) {
  using V = Vector<T>;
  for (int m = 0; m < rows; ++m) {
    V sum[thin_width] = {};
    for (int64_t p = first; p < last; ++p) {
      const T *g = buffers.grad_z.at(p) + (row + m) * panel, *x = buffers.x.at(p);
      for (int64_t c = 0; c < panel; c += lanes<T>)
        for (int64_t i = 0; i < in; ++i)
          sum[i] += *reinterpret_cast<const V*>(g + c) * *reinterpret_cast<const V*>(x + i * panel + c);
    }
    for (int64_t i = 0; i < in; ++i) {
      T total = 0;
      for (int l = 0; l < lanes<T>; ++l) total += sum[i][l];
      tile[m * panel + i] = total;
    }
  }
}

// The sums of one tile of the weight gradient over the panels [first, last) of `panels`.
template <class T>
void gradient_tile(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels, int64_t first,
                   int64_t last, int64_t row, int height, int64_t column, T* tile) {
  if (layer.in <= thin_width) return thin_gradient(buffers, first, last, row, height, layer.in, tile);
  const int64_t samples = (last - first) * panel, at = row * layer.in + column;
  TileTask<T> task{};
  task.a = buffers.grad_z.at(first) + row * panel;
  task.a_next = buffers.grad_z.stride;
  task.b = buffers.x_rows + (column * panels + first * panel) * panel;
  task.k = samples;
  task.c = tile;
  task.fetch_tile = {{layer.weight.value + at, layer.weight.exp_avg + at, layer.weight.exp_avg_sq + at}, layer.in};
  multiply<T, Storage::panels>(height, task);
}
