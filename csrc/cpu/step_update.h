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

// The sums of a row of grad_z over the panels [first, last).
template <class T>
T row_sum(const LayerBuffers<T>& buffers, int64_t first, int64_t last, int64_t row) {
  Vector<T> sum{};
  for (int64_t p = first; p < last; ++p)
    for (int64_t c = 0; c < panel; c += lanes<T>)
      sum += *reinterpret_cast<const Vector<T>*>(buffers.grad_z.at(p) + row * panel + c);
  T total = 0;
  for (int l = 0; l < lanes<T>; ++l) total += sum[l];
  return total;
}

// One item of a linear layer.
template <class T>
void linear_update(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, const UpdateCut& cut, int64_t item,
                   int64_t panels, T average_rate) {
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
      gradient_tile(layer, buffers, panels, 0, panels, row, height, column, tile);
      update(layer.weight, row * layer.in + column, layer.in, height, width, tile, average_rate);
    }
    if (group > 0 || !layer.bias.is_updated()) continue;
    for (int m = 0; m < height; ++m) tile[m] = row_sum(buffers, 0, panels, row + m);
    update(layer.bias, row, 0, 1, height, tile, average_rate);
  }
}

// The tiles of a weight gradient that is summed in parts: [block][tile].
struct PartialTiles {
  template <class T>
  explicit PartialTiles(const StepLayer<T>& layer)
      : tiles(layer.out, gradient_rows), count((layer.in + panel - 1) / panel * tiles.count) {}

  Tiles tiles;
  int64_t count;
};

template <class T>
T* partial_sums(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int part) {
  return buffers.partial + part * partial_size(layer);
}

// A thread's share of the parts' sums: of its own panels, where there is a thread for each part.
template <class T>
void sum_parts_of(const Worker& worker, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels) {
  const PartialTiles cut(layer);
  const int threads = worker.team.threads;
  for (int part = 0; part < sum_parts; ++part) {
    const int from = (part * threads + sum_parts - 1) / sum_parts,
              to = ((part + 1) * threads + sum_parts - 1) / sum_parts;
    const bool alone = threads < sum_parts;
    if (!alone && (worker.thread < from || worker.thread >= to)) continue;
    const int64_t member = alone ? 0 : worker.thread - from, members = alone ? 1 : to - from;
    const int64_t halves = panels / worker.team.panels;
    const int64_t first = halves * (worker.team.panels * part / sum_parts);
    const int64_t last = halves * (worker.team.panels * (part + 1) / sum_parts);
    T* sums = partial_sums(layer, buffers, part);
    for (int64_t i = cut.count * member / members; i < cut.count * (member + 1) / members; ++i) {
      const int64_t block = i / cut.tiles.count, row = cut.tiles.begin(i % cut.tiles.count);
      const int height = cut.tiles.height(i % cut.tiles.count);
      if (layer.weight.is_updated())
        gradient_tile(layer, buffers, panels, first, last, row, height, block * panel,
                      sums + (block * layer.out + row) * panel);
      T* bias = sums + (layer.in + panel - 1) / panel * panel * layer.out;
      for (int m = 0; block == 0 && m < height; ++m) bias[row + m] = row_sum(buffers, first, last, row + m);
    }
  }
}

// Adds up the parts and updates, when all are there.
template <class T>
void update_from_parts(const Worker& worker, const StepLayer<T>& layer, const LayerBuffers<T>& buffers,
                       T average_rate) {
  alignas(64) T tile[gradient_rows * panel];
  const PartialTiles cut(layer);
  const auto add_up = [&](int64_t at, int64_t n) {
    for (int64_t i = 0; i < n; ++i) tile[i] = partial_sums(layer, buffers, 0)[at + i];
    for (int part = 1; part < sum_parts; ++part) {
      const T* sums = partial_sums(layer, buffers, part) + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) tile[i] += sums[i];
    }
  };
  const int64_t thread = worker.thread, threads = worker.team.threads;
  for (int64_t i = cut.count * thread / threads; i < cut.count * (thread + 1) / threads; ++i) {
    const int64_t block = i / cut.tiles.count, row = cut.tiles.begin(i % cut.tiles.count), column = block * panel;
    const int height = cut.tiles.height(i % cut.tiles.count);
    if (layer.weight.is_updated()) {
      add_up((block * layer.out + row) * panel, height * panel);
      update(layer.weight, row * layer.in + column, layer.in, height, std::min(panel, layer.in - column), tile,
             average_rate);
    }
    if (block > 0 || !layer.bias.is_updated()) continue;
    add_up((layer.in + panel - 1) / panel * panel * layer.out + row, height);
    update(layer.bias, row, 0, 1, height, tile, average_rate);
  }
}

// After batch_norm_sums of all its halves.
template <class T>
void batch_norm_update(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int halves, T average_rate) {
  T grad[panel] = {};
  const int64_t width = layer.out;
  for (int64_t c = 0; c < width; c += panel) {
    const int64_t n = std::min(panel, width - c);
    for (const auto& [parameter, at] : {std::pair{&layer.weight, width + c}, std::pair{&layer.bias, c}}) {
      if (!parameter->is_updated()) continue;
      for (int64_t i = 0; i < n; ++i) {
        grad[i] = 0;
        for (int half = 0; half < halves; ++half) grad[i] += buffers.sums[half * 2 * width + at + i];
      }
      update(*parameter, c, 0, 1, n, grad, average_rate);
    }
  }
}

// The update of a network by all threads. Of layers that are not summed in parts, whoever is free takes the next item.
template <class T>
void update_network(const Worker& worker, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers,
                    T average_rate) {
  Team& team = worker.team;
  const int64_t panels = buffers.panels;
  const auto is_updated = [&](int l) {
    return network.layers[l].weight.is_updated() || network.layers[l].bias.is_updated();
  };
  const auto in_parts = [&](int l) { return buffers.layers[l].partial != nullptr && is_updated(l); };
  bool any_in_parts = false;
  for (int l = 0; l < network.count; ++l) {
    if (!in_parts(l)) continue;
    any_in_parts = true;
    sum_parts_of(worker, network.layers[l], buffers.layers[l], panels);
  }
  int64_t item = team.next_item.fetch_add(1, std::memory_order_relaxed), before = 0;
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    if (!is_updated(l) || in_parts(l)) continue;
    const bool is_linear = layer.kind == LayerKind::linear;
    const UpdateCut cut = UpdateCut::of(layer, panels * panel, team.threads);
    const int64_t items = is_linear ? cut.items : 1;
    for (; item < before + items; item = team.next_item.fetch_add(1, std::memory_order_relaxed)) {
      if (is_linear)
        linear_update(layer, buffers.layers[l], cut, item - before, panels, average_rate);
      else
        batch_norm_update(layer, buffers.layers[l], int(panels / team.panels), average_rate);
    }
    before += items;
  }
  if (!any_in_parts) return;
  team.barrier.wait();
  for (int l = 0; l < network.count; ++l)
    if (in_parts(l)) update_from_parts(worker, network.layers[l], buffers.layers[l], average_rate);
}
