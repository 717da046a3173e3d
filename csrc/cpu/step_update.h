// Weight gradients with Adam applied to each tile as it is finished: no gradient is ever stored. Included once for each
// instruction set, inside its namespace, after step_layers.h.

// One update of rows x n elements from `at` on, `stride` apart; their gradients are rows of 32, of which the rest does
// not matter.
template <class T>
void update(const Trained<T>& parameter, int64_t at, int64_t stride, int rows, int64_t n, const T* grad,
            T average_rate) {
#if defined(FASTGAN_ISA_AVX512)
  if constexpr (sizeof(T) == 4) {
    const auto from = [&](float* data, int64_t m) { return data + at + m * stride; };
    const AdamFloats adam(*parameter.step, average_rate);
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 mask = n - i < 16 ? __mmask16((1u << (n - i)) - 1) : __mmask16(0xffff);
      for (int m = 0; m < rows; ++m)
        adam.update(mask, grad + m * panel + i, from(parameter.value + i, m), from(parameter.exp_avg + i, m),
                    from(parameter.exp_avg_sq + i, m),
                    parameter.max_exp_avg_sq == nullptr ? nullptr : from(parameter.max_exp_avg_sq + i, m),
                    parameter.average == nullptr ? nullptr : from(parameter.average + i, m));
    }
    return;
  }
#endif
  // By way of whole vectors at known places: the compiler would do the odd elements at the ends of a row otherwise, and
  // round them otherwise, so that the result would depend on where the row begins.
  const AdamStep<T> s = *parameter.step;
  alignas(64) T param[panel], exp_avg[panel], exp_avg_sq[panel], most[panel], average[panel];
  for (int m = 0; m < rows; ++m, grad += panel) {
    const auto read = [&](T* to, T* data) {
      std::memset(to, 0, panel * sizeof(T));
      if (data != nullptr) std::memcpy(to, data + at + m * stride, n * sizeof(T));
    };
    const auto write = [&](const T* from, T* data) {
      if (data != nullptr) std::memcpy(data + at + m * stride, from, n * sizeof(T));
    };
    read(param, parameter.value), read(exp_avg, parameter.exp_avg), read(exp_avg_sq, parameter.exp_avg_sq);
    read(most, parameter.max_exp_avg_sq), read(average, parameter.average);
    if (parameter.max_exp_avg_sq == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < panel; ++i) adam_update(s, false, grad[i], param[i], exp_avg[i], exp_avg_sq[i], most[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < panel; ++i) adam_update(s, true, grad[i], param[i], exp_avg[i], exp_avg_sq[i], most[i]);
    }
#pragma omp simd
    for (int64_t i = 0; i < panel; ++i) average[i] += average_rate * (param[i] - average[i]);
    write(param, parameter.value), write(exp_avg, parameter.exp_avg), write(exp_avg_sq, parameter.exp_avg_sq);
    write(most, parameter.max_exp_avg_sq), write(average, parameter.average);
  }
}

// What the weight gradient of one pass is cut into: tiles of the outputs by blocks of 32 inputs.
struct UpdateCut {
  int64_t blocks, blocks_per_item, tiles_per_item, items;
  Tiles tiles;

  // Enough items for all threads to end at about the same time, each with its rows of x in half of a second-level
  // cache.
  template <class T>
  static UpdateCut of(const StepLayer<T>& layer, int64_t samples, int threads) {
    UpdateCut cut{(layer.in + panel - 1) / panel, 1, 1, 0, Tiles(layer.out, gradient_rows)};
    const int64_t cached = std::max<int64_t>(1, (1 << 20) / (samples * panel * int64_t(sizeof(T))));
    cut.blocks_per_item = std::min({cut.blocks, cached, int64_t{8}});
    const int64_t groups = (cut.blocks + cut.blocks_per_item - 1) / cut.blocks_per_item;
    const int64_t wanted = std::max<int64_t>(1, 12 * threads / groups);
    cut.tiles_per_item = std::max<int64_t>(1, cut.tiles.count / wanted);
    cut.items = groups * ((cut.tiles.count + cut.tiles_per_item - 1) / cut.tiles_per_item);
    return cut;
  }
};

// One item of a linear layer: the samples are those of the panels [first, last).
template <class T>
void linear_update(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, const UpdateCut& cut, int64_t item,
                   int64_t first, int64_t last, T average_rate) {
  alignas(64) T tile[gradient_rows * panel] = {};
  const int64_t stripes = (cut.tiles.count + cut.tiles_per_item - 1) / cut.tiles_per_item;
  const int64_t group = item / stripes, stripe = item % stripes;
  const int64_t begin = stripe * cut.tiles_per_item, end = std::min(cut.tiles.count, begin + cut.tiles_per_item);
  const int64_t block_begin = group * cut.blocks_per_item;
  const int64_t block_end = std::min(cut.blocks, block_begin + cut.blocks_per_item);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = cut.tiles.begin(i);
    const int height = cut.tiles.height(i);
    for (int64_t block = block_begin; layer.weight.is_updated() && block < block_end; ++block) {
      const int64_t column = block * panel, width = std::min(panel, layer.in - column);
      gradient_tile(layer, buffers, first, last, row, height, column, tile);
      update(layer.weight, row * layer.in + column, layer.in, height, width, tile, average_rate);
    }
    if (group > 0 || !layer.bias.is_updated()) continue;
    for (int m = 0; m < height; ++m) {
      Vector<T> sum{};
      for (int64_t p = first; p < last; ++p)
        for (int64_t c = 0; c < panel; c += lanes<T>)
          sum += *reinterpret_cast<const Vector<T>*>(buffers.grad_z.at(p) + (row + m) * panel + c);
      tile[m] = 0;
      for (int l = 0; l < lanes<T>; ++l) tile[m] += sum[l];
    }
    update(layer.bias, row, 0, 1, height, tile, average_rate);
  }
}

// After batch_norm_sums over these halves.
template <class T>
void batch_norm_update(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int first_half, int halves,
                       int64_t panels, T average_rate) {
  T grad[panel] = {};
  const int64_t width = layer.out;
  for (int64_t c = 0; c < width; c += panel) {
    const int64_t n = std::min(panel, width - c);
    for (const auto& [parameter, at] : {std::pair{&layer.weight, width + c}, std::pair{&layer.bias, c}}) {
      if (!parameter->is_updated()) continue;
      for (int64_t i = 0; i < n; ++i) {
        grad[i] = 0;
        for (int half = first_half; half < first_half + halves; ++half)
          grad[i] += buffers.sums[half * panels * 2 * width + at + i];
      }
      update(*parameter, c, 0, 1, n, grad, average_rate);
    }
  }
}

// The update of a network, by all threads of the team; whoever is free takes the next item.
template <class T>
void update_network(Team& team, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int first_half,
                    int halves, T average_rate) {
  const int64_t first = first_half * team.panels, last = first + halves * team.panels;
  int64_t item = team.next_item.fetch_add(1, std::memory_order_relaxed), before = 0;
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    if (!layer.weight.is_updated() && !layer.bias.is_updated()) continue;
    const bool is_linear = layer.kind == LayerKind::linear;
    const UpdateCut cut = UpdateCut::of(layer, (last - first) * panel, team.threads);
    const int64_t items = is_linear ? cut.items : 1;
    for (; item < before + items; item = team.next_item.fetch_add(1, std::memory_order_relaxed)) {
      if (is_linear)
        linear_update(layer, buffers.layers[l], cut, item - before, first, last, average_rate);
      else
        batch_norm_update(layer, buffers.layers[l], first_half, halves, team.panels, average_rate);
    }
    before += items;
  }
}
