// The double backward of a whole MLP, on rows. Included once for each instruction set, inside its namespace, after
// mlp_backward.h.
//
// With bars for cotangents and h_0 = x, backward was
//   grad_z_l = grad_y_l act'(z_l);  gW_l = grad_z_l^T h_{l-1};  gb_l = sum grad_z_l;  grad_y_{l-1} = grad_z_l W_l.
// The cotangent of its last result, grad_y_0, goes up through the layers:
//   grad_z_bar_l = grad_y_bar_{l-1} W_l^T;  grad_y_bar_l = grad_z_bar_l act'(z_l)
//   z_bar_l = grad_z_bar_l grad_y_l act''(z_l);  the gradient by W_l gets grad_z_l^T grad_y_bar_{l-1}
// Then the z_bars go down as gradients by z do, each layer's added to what comes from those above.

// Of `width` rows, up to 32, from each `length` numbers: [length][32], filled up with zeros.
template <class T>
void pack_transposed(int64_t length, int64_t width, const T* from, int64_t stride, T* to) {
  if (width < panel) std::memset(to, 0, length * panel * sizeof(T));
#if defined(FASTGAN_ISA_AVX512)
  if constexpr (sizeof(T) == 4) return transpose(width, length, from, stride, to, panel);
#endif
  // A cache line of each row at a time: lines of rows that are a power of two apart drive each other out of the cache.
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t k = 0; k < length; k += line) {
    const int64_t end = std::min(length, k + line);
    for (int64_t row = 0; row < width; ++row)
      for (int64_t c = k; c < end; ++c) to[c * panel + row] = from[row * stride + c];
  }
}

// A tile of grad_z_bar goes on through the activation: grad_y_bar to `to`, and z_bar where it has a place.
template <class T>
void cotangent_epilogue(const MlpSecondLayer<T>& layer, T* tile, int rows, int64_t width, int64_t at, T* z_bar, T* to) {
  const int64_t stride = layer.out;
  if (layer.activation.activation != Activation::identity) {
    alignas(64) T saved[tile_rows * panel];
    if (width < panel) std::memset(saved, 0, sizeof(saved));
    load_tile(rows, width, layer.saved + at, stride, saved);
    if (z_bar != nullptr) {
      alignas(64) T curved[tile_rows * panel];
      if (width < panel) std::memset(curved, 0, sizeof(curved));
      load_tile(rows, width, layer.kept_grad_y + at, stride, curved);
      const T slope = T(layer.activation.negative_slope);
      with_activation(layer.activation.activation, [&](auto act) {
        using A = decltype(act);
#pragma omp simd
        for (int64_t i = 0; i < rows * panel; ++i) {  // both derivatives at once: they share an exponential
          const T bar = tile[i], s = saved[i];
          curved[i] = bar * curved[i] * A::dd(s, slope);
          tile[i] = gradient<A>(bar, s, slope);
        }
      });
      store_tile(rows, width, curved, z_bar + at, stride);
    } else {
      activation_backward(layer.activation, rows * panel, saved, tile);
    }
  }
  store_tile(rows, width, tile, to + at, stride);
}

// The sum of the products of n numbers, which need not be aligned.
template <class T>
T dot(int64_t n, const T* a, const T* b) {
  constexpr int chains = 4;
  Vector<T> sum[chains] = {}, left, right;
  int64_t i = 0;
  for (; i + chains * lanes<T> <= n; i += chains * lanes<T>)
    for (int chain = 0; chain < chains; ++chain) {
      std::memcpy(&left, a + i + chain * lanes<T>, sizeof(left));
      std::memcpy(&right, b + i + chain * lanes<T>, sizeof(right));
      sum[chain] += left * right;
    }
  for (; i + lanes<T> <= n; i += lanes<T>) {
    std::memcpy(&left, a + i, sizeof(left));
    std::memcpy(&right, b + i, sizeof(right));
    sum[0] += left * right;
  }
  const Vector<T> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  T total = 0;
  for (int lane = 0; lane < lanes<T>; ++lane) total += all[lane];
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// Of layers with few outputs, of which a tile would be mostly padding.
template <class T>
void thin_cotangent(const MlpSecondLayer<T>& layer, int64_t batch, int thread, int threads, const T* x, T* z_bar,
                    T* to) {
  const int64_t in = layer.in, out = layer.out;
  const Tiles tiles(batch);
  const Share share(tiles.count, thread, threads);
  alignas(64) T tile[tile_rows * panel] = {};
  for (int64_t i = share.begin; i < share.end; ++i) {
    const int64_t row = tiles.begin(i);
    const int height = tiles.height(i);
    for (int m = 0; m < height; ++m)
      for (int64_t n = 0; n < out; ++n) tile[m * panel + n] = dot(in, x + (row + m) * in, layer.weight + n * in);
    cotangent_epilogue(layer, tile, height, out, row * out, z_bar, to);
  }
}

// grad_y_bar and z_bar of a layer's output from x, that of its input. A tile's rows are samples, and its 32 columns
// outputs: the panel is a block of the weight, transposed.
template <class T>
void cotangent(const MlpSecondLayer<T>& layer, int64_t batch, int thread, int threads, const T* x, T* own, T* z_bar,
               T* to) {
  const int64_t in = layer.in, out = layer.out, blocks = (out + panel - 1) / panel;
  if (out <= thin_width) return thin_cotangent(layer, batch, thread, threads, x, z_bar, to);
  const Tiles tiles = shared_tiles(batch, threads);
  // Each thread transposes the weight for its samples; or its share of the weight, for all of them.
  const bool by_rows = blocks < 4 * threads && blocks % threads != 0;
  const Share rows = by_rows ? Share(tiles.count, thread, threads) : Share(tiles.count, 0, 1);
  const Share columns = by_rows ? Share(blocks, 0, 1) : Share(blocks, thread, threads);
  T* weight = own;                          // [sum_block][32]
  T* samples = own + sum_block<T> * panel;  // [samples][copied_stride]
  alignas(64) T tile[tile_rows * panel];
  for (int64_t first = rows.begin; first < rows.end; first += row_tiles_at_once) {
    const int64_t last = std::min(rows.end, first + row_tiles_at_once), first_row = tiles.begin(first);
    for (int64_t k = 0; k < in; k += sum_block<T>) {
      const int64_t length = std::min(sum_block<T>, in - k);
      for (int64_t r = first_row; r < tiles.begin(last); ++r)
        std::memcpy(samples + (r - first_row) * copied_stride<T>, x + r * in + k, length * sizeof(T));
      for (int64_t block = columns.begin; block < columns.end; ++block) {
        const int64_t column = block * panel, width = std::min(panel, out - column);
        pack_transposed(length, width, layer.weight + column * in + k, in, weight);
        for (int64_t i = first; i < last; ++i) {
          const int64_t row = tiles.begin(i), at = row * out + column;
          const int height = tiles.height(i);
          TileTask<T> task{};
          task.a = samples + (row - first_row) * copied_stride<T>;
          task.b = weight;
          task.k = length;
          task.c = tile;
          task.accumulate = k > 0;
          task.fetch.from = tile;  // nothing
          // The next block of the weight.
          if (i - first < 2 && block + 1 < columns.end)
            task.fetch = {layer.weight + (column + panel) * in + k + (i - first) * int64_t(64 / sizeof(T)), panel, in};
          if (k > 0) load_tile(height, width, to + at, out, tile);
          multiply<T, Storage::copied>(height, task);
          if (k + length < in)
            store_tile(height, width, tile, to + at, out);
          else
            cotangent_epilogue(layer, tile, height, width, at, z_bar, to);
        }
      }
    }
  }
}

template <class T>
void Kernels<T>::mlp_double_backward(const MlpSecondPass<T>& mlp, const MlpDoubleBackwardBuffers<T>& buffers,
                                     Team& team, int thread) {
  T* const own = buffers.own + thread * buffers.own_size;
  const auto place_of = [&](int l) { return l % 2 == 0 ? buffers.even : buffers.odd; };
  const auto z_bar_of = [&](int l) -> T* {
    if (l < mlp.lowest || is_piecewise_linear(mlp.layers[l].activation.activation)) return nullptr;
    T* at = buffers.z_bar;
    for (int before = mlp.lowest; before < l; ++before)
      if (!is_piecewise_linear(mlp.layers[before].activation.activation)) at += mlp.batch * mlp.layers[before].out;
    return at;
  };

  const int highest = mlp.highest();
  int end = mlp.grad_output_bar != nullptr ? mlp.count : highest >= mlp.lowest ? highest + 1 : 0;
  for (int l = end; l < mlp.count; ++l)
    if (mlp.layers[l].grad_weight != nullptr) end = l;  // which reads the cotangent before it
  const T* x = mlp.grad_input_bar;
  for (int l = 0; l < mlp.count; ++l) {
    const MlpSecondLayer<T>& layer = mlp.layers[l];
    if (layer.grad_weight != nullptr) {
      MlpLayer<T> reversed = layer;
      reversed.x = x;
      reversed.grad_bias = nullptr;
      parameter_gradients(reversed, mlp.batch, team, thread, layer.kept_grad_z, buffers.x_rows, own);
    }
    if (l >= end) break;
    T* const to = l + 1 == mlp.count && mlp.grad_output_bar != nullptr ? mlp.grad_output_bar : place_of(l);
    cotangent(layer, mlp.batch, thread, team.threads, x, own, z_bar_of(l), to);
    x = to;
    team.barrier.wait();  // it is complete, and x_rows free
  }

  const T* grad_z = highest >= mlp.lowest ? z_bar_of(highest) : nullptr;
  for (int l = highest; l >= mlp.lowest; --l) {
    team.barrier.wait();  // grad_z is complete, and x_rows free
    const MlpSecondLayer<T>& layer = mlp.layers[l];
    if (layer.grad_weight != nullptr || layer.grad_bias != nullptr)
      parameter_gradients<T>(layer, mlp.batch, team, thread, grad_z, buffers.x_rows, own, true);
    if (l == mlp.lowest && mlp.grad_input == nullptr) return;
    T* const to = l == 0 ? mlp.grad_input : place_of(l);
    const MlpLayer<T>* before = l == 0 ? nullptr : &mlp.layers[l - 1];
    const T* added = l == 0 ? nullptr : z_bar_of(l - 1);
    input_gradient<T>(layer, before, added, mlp.batch, thread, team.threads, grad_z, own, to);
    grad_z = to;
  }
}
