// Backward through all layers, on rows. Included once for each instruction set, inside its namespace, after
// panels/linear.h.
//
// The tiles of a product are those of the engine's panels, with other roles. In the gradient by an input, a tile's rows
// are samples, and its 32 columns inputs: the weight, read as it stands, is the panel. In a weight gradient, its rows
// are outputs, its columns inputs, and the sum goes over the samples.

static_assert(tile_rows <= most_tile_rows && copied_stride<float> == most_copied<float> &&
              copied_stride<double> == most_copied<double>);

// The bounds of a thread's share of n things.
struct Share {
  int64_t begin, end;
  Share(int64_t n, int thread, int threads) : begin(n * thread / threads), end(n * (thread + 1) / threads) {}
};

// As many tiles as there are threads, or twice, ..., unless that makes them small.
inline Tiles shared_tiles(int64_t rows, int threads) {
  Tiles tiles(rows);
  const int64_t rounded = (tiles.count + threads - 1) / threads * threads;
  if (rows >= 8 * rounded) tiles.count = rounded;
  return tiles;
}

// `width` columns, up to `most`, of rows whose strides are given. Whole ones are copied without a call.
template <int most, class T>
void copy_columns(int64_t rows, int64_t width, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  if (width == most)
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_stride, from + r * from_stride, most * sizeof(T));
  else
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_stride, from + r * from_stride, width * sizeof(T));
}

template <class T>
void load_tile(int rows, int64_t width, const T* from, int64_t stride, T* tile) {
  copy_columns<panel>(rows, width, from, stride, tile, panel);
}
template <class T>
void store_tile(int rows, int64_t width, const T* tile, T* to, int64_t stride) {
  copy_columns<panel>(rows, width, tile, panel, to, stride);
}

// A block of columns of a matrix, filled up with zeros to 32.
template <class T>
void pack_columns(int64_t rows, int64_t width, const T* from, int64_t stride, T* to) {
  if (width < panel) std::memset(to, 0, rows * panel * sizeof(T));
  copy_columns<panel>(rows, width, from, stride, to, panel);
}

// The rows [begin, end) of a matrix into blocks of 32 columns, [width / 32][rows][32]: row by row, as they are read
// fastest.
template <class T>
void pack_blocks(int64_t begin, int64_t end, int64_t rows, int64_t width, const T* from, T* to) {
  const int64_t whole = width / panel * panel;
  for (int64_t r = begin; r < end; ++r) {
    const T* row = from + r * width;
    T* out = to + r * panel;
    for (int64_t c = 0; c < whole; c += panel, out += rows * panel) std::memcpy(out, row + c, panel * sizeof(T));
    if (whole == width) continue;
    std::memset(out, 0, panel * sizeof(T));
    for (int64_t c = whole; c < width; ++c) out[c - whole] = row[c];
  }
}

// A tile of the gradient by a layer's y (layer is null: by the input), on through the activation where there is one.
// Where given, `added` is added to what comes out: it is given for curved activations alone.
template <class T>
void input_gradient_epilogue(const MlpLayer<T>* layer, const T* added, T* tile, int rows, int64_t width, int64_t at,
                             int64_t stride, T* to) {
  if (layer == nullptr || layer->activation.activation == Activation::identity) {
    if (layer != nullptr && layer->grad_y != nullptr) store_tile(rows, width, tile, layer->grad_y + at, stride);
    return store_tile(rows, width, tile, to + at, stride);
  }
  alignas(64) T saved[tile_rows * panel];
  if (width < panel) std::memset(saved, 0, sizeof(saved));
  load_tile(rows, width, layer->saved + at, stride, saved);
  if (layer->grad_y != nullptr) store_tile(rows, width, tile, layer->grad_y + at, stride);
  if (added == nullptr) {
    activation_backward(layer->activation, rows * panel, saved, tile);
  } else {
    alignas(64) T sum[tile_rows * panel];
    if (width < panel) std::memset(sum, 0, sizeof(sum));
    load_tile(rows, width, added + at, stride, sum);
    T* const none = nullptr;
    activation_backward(layer->activation, rows * panel, saved, tile, none, sum);
  }
  store_tile(rows, width, tile, to + at, stride);
}

// grad_z of the last layer.
template <class T>
void output_gradient(const Mlp<T>& mlp, int thread, int threads, T* grad_z) {
  const MlpLayer<T>& last = mlp.layers[mlp.count - 1];
  const Tiles tiles = shared_tiles(mlp.batch, threads);
  const Share share(tiles.count, thread, threads);
  alignas(64) T tile[tile_rows * panel] = {};
  for (int64_t i = share.begin; i < share.end; ++i)
    for (int64_t column = 0; column < last.out; column += panel) {
      const int64_t width = std::min(panel, last.out - column), at = tiles.begin(i) * last.out + column;
      load_tile(tiles.height(i), width, mlp.grad_output + at, last.out, tile);
      const T* const none = nullptr;
      input_gradient_epilogue(&last, none, tile, tiles.height(i), width, at, last.out, grad_z);
    }
}

// The gradient by a layer's input, and on through the activation of the layer before it, or null; `added` as
// input_gradient_epilogue takes it.
template <class T>
void input_gradient(const MlpLayer<T>& layer, const MlpLayer<T>* before, const T* added, int64_t batch, int thread,
                    int threads, const T* grad_z, T* own, T* to) {
  const int64_t in = layer.in, out = layer.out, blocks = (in + panel - 1) / panel;
  const Tiles tiles = shared_tiles(batch, threads);
  // Each thread packs the weight for its samples, or the gradients for its inputs.
  const bool by_rows = tiles.count >= 4 * threads || blocks < 2 * threads;
  const Share rows = by_rows ? Share(tiles.count, thread, threads) : Share(tiles.count, 0, 1);
  const Share columns = by_rows ? Share(blocks, 0, 1) : Share(blocks, thread, threads);
  T* weight = own;                            // [sum_block][32]
  T* gradients = own + sum_block<T> * panel;  // [samples][copied_stride]
  alignas(64) T tile[tile_rows * panel];
  for (int64_t first = rows.begin; first < rows.end; first += row_tiles_at_once) {
    const int64_t last = std::min(rows.end, first + row_tiles_at_once), first_row = tiles.begin(first);
    for (int64_t k = 0; k < out; k += sum_block<T>) {
      const int64_t length = std::min(sum_block<T>, out - k);
      for (int64_t r = first_row; r < tiles.begin(last); ++r)
        std::memcpy(gradients + (r - first_row) * copied_stride<T>, grad_z + r * out + k, length * sizeof(T));
      for (int64_t block = columns.begin; block < columns.end; ++block) {
        const int64_t column = block * panel, width = std::min(panel, in - column);
        pack_columns(length, width, layer.weight + k * in + column, in, weight);
        for (int64_t i = first; i < last; ++i) {
          const int64_t row = tiles.begin(i), at = row * in + column;
          const int height = tiles.height(i);
          TileTask<T> task{};
          task.a = gradients + (row - first_row) * copied_stride<T>;
          task.b = weight;
          task.k = length;
          task.c = tile;
          task.accumulate = k > 0;
          task.fetch.from = tile;  // nothing
          // The next block of the weight.
          if (i - first < 2)
            task.fetch = {layer.weight + k * in + column + panel + (i - first) * int64_t(64 / sizeof(T)), panel * in,
                          in};
          if (k > 0) load_tile(height, width, to + at, in, tile);
          multiply<T, Storage::copied>(height, task);
          if (k + length < out)
            store_tile(height, width, tile, to + at, in);
          else
            input_gradient_epilogue(before, added, tile, height, width, at, in, to);
        }
      }
    }
  }
}

// The sums of the columns [row, row + height) of `samples` rows of packed gradients.
template <class T>
void add_bias_gradient(const T* gradients, int64_t stride, int64_t samples, int64_t row, int64_t height, bool first,
                       T* grad_bias) {
  alignas(64) double total[panel] = {};
  for (int64_t k = 0; k < samples; k += panel) {
    alignas(64) T sum[panel] = {};
    for (int64_t s = k; s < std::min(samples, k + panel); ++s)
      for (int64_t m = 0; m < packed_stride; ++m) sum[m] += gradients[s * stride + m];
    for (int64_t m = 0; m < packed_stride; ++m) total[m] += sum[m];
  }
  for (int64_t m = 0; m < height; ++m) grad_bias[row + m] = T(first ? total[m] : grad_bias[row + m] + total[m]);
}

// Of layers with few inputs, whose tiles have inputs as rows and 32 outputs as columns.
template <class T>
void thin_parameter_gradients(const MlpLayer<T>& layer, int64_t batch, int thread, int threads, const T* grad_z, T* own,
                              bool onto) {
  const int64_t in = layer.in, out = layer.out;
  const Tiles tiles(in);
  const Share blocks((out + panel - 1) / panel, thread, threads);
  T* const inputs = own;                                                        // [samples][packed_stride]
  T* const gradients = own + std::min(batch, samples_at_once) * packed_stride;  // [samples][32]
  alignas(64) T tile[thin_width * panel];
  for (int64_t first = 0; first < batch && blocks.begin < blocks.end; first += samples_at_once) {
    const int64_t samples = std::min(samples_at_once, batch - first);
    if (layer.grad_weight != nullptr)
      copy_columns<packed_stride>(samples, in, layer.x + first * in, in, inputs, packed_stride);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int64_t row = block * panel, width = std::min(panel, out - row);
      pack_columns(samples, width, grad_z + first * out + row, out, gradients);
      for (int64_t half = 0; layer.grad_bias != nullptr && half < width; half += packed_stride)
        add_bias_gradient(gradients + half, panel, samples, row + half, std::min<int64_t>(packed_stride, width - half),
                          first == 0, layer.grad_bias);
      if (layer.grad_weight == nullptr) continue;
      TileTask<T> task{};
      task.b = gradients;
      task.k = samples;
      task.fetch.from = tile;  // nothing
      for (int64_t i = 0; i < tiles.count; ++i) {
        task.a = inputs + tiles.begin(i);
        task.c = tile + tiles.begin(i) * panel;
        multiply<T, Storage::packed>(tiles.height(i), task);
      }
      for (int64_t m = 0; m < width; ++m)
        for (int64_t i = 0; i < in; ++i) {
          T& to = layer.grad_weight[(row + m) * in + i];
          to = first == 0 && !onto ? tile[i * panel + m] : to + tile[i * panel + m];
        }
    }
  }
}

// Of a layer with one output: a sum of rows of x.
template <class T>
void row_parameter_gradients(const MlpLayer<T>& layer, int64_t batch, int thread, int threads, const T* grad_z,
                             bool onto) {
  const int64_t in = layer.in;
  const Share blocks((in + panel - 1) / panel, thread, threads);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t column = block * panel, width = std::min(panel, in - column);
    alignas(64) T total[panel] = {};
    for (int64_t first = 0; layer.grad_weight != nullptr && first < batch; first += samples_at_once) {
      constexpr int chains = 4;
      alignas(64) T sum[chains][panel] = {};
      const int64_t last = std::min(batch, first + samples_at_once);
      const T* x = layer.x + first * in + column;
      int64_t s = first;
      if (width == panel)
        for (; s + chains <= last; s += chains, x += chains * in)
          for (int chain = 0; chain < chains; ++chain)
#pragma omp simd
            for (int64_t c = 0; c < panel; ++c) sum[chain][c] += grad_z[s + chain] * x[chain * in + c];
      for (; s < last; ++s, x += in)
        for (int64_t c = 0; c < width; ++c) sum[0][c] += grad_z[s] * x[c];
      for (int64_t c = 0; c < panel; ++c) total[c] += (sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]);
    }
    if (layer.grad_weight == nullptr) continue;
    for (int64_t c = 0; onto && c < width; ++c) total[c] += layer.grad_weight[column + c];
    std::memcpy(layer.grad_weight + column, total, width * sizeof(T));
  }
  if (layer.grad_bias == nullptr || blocks.begin > 0 || blocks.end == 0) return;
  double total = 0;
  for (int64_t s = 0; s < batch; s += panel) {
    T sum = 0;
    for (int64_t i = s; i < std::min(batch, s + panel); ++i) sum += grad_z[i];
    total += sum;
  }
  layer.grad_bias[0] = T(total);
}

// The gradients by a layer's weight, added to what is in its place where `onto` is set, and bias. Begins and ends with
// the threads at work on memory of their own, but for x_rows, which is free again after the next barrier.
template <class T>
void parameter_gradients(const MlpLayer<T>& layer, int64_t batch, Team& team, int thread, const T* grad_z, T* x_rows,
                         T* own, bool onto = false) {
  const int threads = team.threads;
  const int64_t in = layer.in, out = layer.out, blocks = (in + panel - 1) / panel;
  if (out == 1) return row_parameter_gradients(layer, batch, thread, threads, grad_z, onto);
  if (in <= thin_width && out > thin_width)
    return thin_parameter_gradients(layer, batch, thread, threads, grad_z, own, onto);
  const Tiles tiles = shared_tiles(out, threads);
  const bool by_outputs = tiles.count >= 2 * threads || blocks < 2 * threads;
  const Share rows = by_outputs ? Share(tiles.count, thread, threads) : Share(tiles.count, 0, 1);
  const Share columns = by_outputs ? Share(blocks, 0, 1) : Share(blocks, thread, threads);
  T* const gradients = own;  // [samples][packed_stride]
  alignas(64) T tile[tile_rows * panel];
  for (int64_t first = 0; first < batch; first += samples_at_once) {
    const int64_t samples = std::min(samples_at_once, batch - first);
    if (layer.grad_weight != nullptr) {
      if (first > 0) team.barrier.wait();
      const Share packed(samples, thread, threads);
      pack_blocks(packed.begin, packed.end, samples, in, layer.x + first * in, x_rows);
      team.barrier.wait();
    }
    // So many blocks that their rows of x take half of a second-level cache.
    const int64_t cached = std::max<int64_t>(1, (1 << 20) / (samples * panel * int64_t(sizeof(T))));
    for (int64_t group = columns.begin; group < columns.end; group += cached) {
      const int64_t group_end = std::min(columns.end, group + cached);
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const int64_t row = tiles.begin(i);
        const int height = tiles.height(i);
        copy_columns<packed_stride>(samples, row + packed_stride <= out ? packed_stride : height,
                                    grad_z + first * out + row, out, gradients, packed_stride);
        if (layer.grad_bias != nullptr && group == 0)
          add_bias_gradient(gradients, packed_stride, samples, row, height, first == 0, layer.grad_bias);
        for (int64_t block = group; layer.grad_weight != nullptr && block < group_end; ++block) {
          const int64_t column = block * panel, width = std::min(panel, in - column);
          T* to = layer.grad_weight + row * in + column;
          TileTask<T> task{};
          task.a = gradients;
          task.b = x_rows + block * samples * panel;
          task.c = tile;
          // The next rows of x, half of which another thread has packed.
          task.fetch = {task.b + samples * panel, panel * panel, panel};
          if (i > rows.begin || block + 1 == group_end) task.fetch = {tile};
          if (first > 0 || onto) load_tile(height, width, to, in, tile);
          for (int64_t s = 0; s < samples; s += samples_a_chain) {
            task.k = std::min(samples_a_chain, samples - s);
            task.accumulate = first > 0 || s > 0 || onto;
            multiply<T, Storage::packed>(height, task);
            task.a += task.k * packed_stride, task.b += task.k * panel;
            task.fetch.from += task.fetch.after * (samples_a_chain / panel);
          }
          store_tile(height, width, tile, to, in);
        }
      }
    }
  }
}

template <class T>
void Kernels<T>::mlp_backward(const Mlp<T>& mlp, const MlpBackwardBuffers<T>& buffers, Team& team, int thread) {
  T* const own = buffers.own + thread * buffers.own_size;
  const auto place_of = [&](int l) {
    return mlp.layers[l].grad_z != nullptr ? mlp.layers[l].grad_z : l % 2 == 0 ? buffers.even : buffers.odd;
  };
  const int last = mlp.count - 1;
  const MlpLayer<T>& top = mlp.layers[last];
  const T* grad_z = mlp.grad_output;
  if (top.activation.activation != Activation::identity || top.grad_z != nullptr || top.grad_y != nullptr) {
    output_gradient(mlp, thread, team.threads, place_of(last));
    grad_z = place_of(last);
  }
  for (int l = last; l >= mlp.lowest; --l) {
    team.barrier.wait();  // grad_z is complete, and x_rows free
    const MlpLayer<T>& layer = mlp.layers[l];
    if (layer.grad_weight != nullptr || layer.grad_bias != nullptr)
      parameter_gradients(layer, mlp.batch, team, thread, grad_z, buffers.x_rows, own);
    if (l == mlp.lowest && mlp.grad_input == nullptr) return;
    T* const to = l == 0 ? mlp.grad_input : place_of(l - 1);
    const T* const none = nullptr;
    input_gradient(layer, l == 0 ? nullptr : &mlp.layers[l - 1], none, mlp.batch, thread, team.threads, grad_z, own,
                   to);
    grad_z = to;
  }
}
