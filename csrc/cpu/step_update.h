// Weight gradients with Adam applied to each tile as it is finished: no gradient is ever stored. Included once for each
// instruction set, inside its namespace, after step_weight_gradient.h.

// One update of rows x n elements from `at` on, `stride` apart; their gradients are rows of 32, of which the rest does
// not matter.
template <class T>
void update(const AdamParameter<T>& parameter, int64_t at, int64_t stride, int rows, int64_t n, const T* grad,
            T average_rate) {
#if defined(FASTGAN_ISA_AVX512)
  if constexpr (sizeof(T) == 4) {
    const auto from = [&](float* data, int64_t m) { return data + at + m * stride; };
    const AdamFloats adam(*parameter.step, average_rate);
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 mask = n - i < 16 ? __mmask16((1u << (n - i)) - 1) : __mmask16(0xffff);
      for (int m = 0; m < rows; ++m) {
#if defined(FASTGAN_ISA_AMX)
        // The next tile's elements: its product is too short to fetch them meanwhile.
        for (float* next : {parameter.value, parameter.exp_avg, parameter.exp_avg_sq})
          __builtin_prefetch(from(next + i, m) + panel, 1, 3);
#endif
        adam.update(mask, grad + m * panel + i, from(parameter.value + i, m), from(parameter.exp_avg + i, m),
                    from(parameter.exp_avg_sq + i, m),
                    parameter.max_exp_avg_sq == nullptr ? nullptr : from(parameter.max_exp_avg_sq + i, m),
                    parameter.average == nullptr ? nullptr : from(parameter.average + i, m));
      }
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
    for (int64_t i = 0; i < panel; ++i) average[i] = lerp(average[i], param[i], average_rate);
    write(param, parameter.value), write(exp_avg, parameter.exp_avg), write(exp_avg_sq, parameter.exp_avg_sq);
    write(most, parameter.max_exp_avg_sq), write(average, parameter.average);
  }
}

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

// A thread's share of a linear layer: its outputs, or where these are few its inputs. The same at each step, so that
// the weights and moments stay in its cache (whoever is free taking the next tile: `ring` 20 % slower in this phase).
template <class T>
void linear_update(const Worker& worker, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels,
                   T average_rate) {
  alignas(64) T tile[gradient_rows * panel] = {};
  const int64_t thread = worker.thread, threads = worker.team.threads;
  const bool by_outputs = layer.out >= 4 * threads;
  const auto share = [&](int64_t n, bool shared, int64_t i) { return shared ? n * i / threads : i == thread ? 0 : n; };
  const int64_t first_row = share(layer.out, by_outputs, thread), last_row = share(layer.out, by_outputs, thread + 1);
  const int64_t blocks = (layer.in + panel - 1) / panel;
  const int64_t first_block = share(blocks, !by_outputs, thread), last_block = share(blocks, !by_outputs, thread + 1);
  const Tiles tiles(last_row - first_row, gradient_rows);
  // So many blocks that their rows of x take half of a second-level cache.
  const int64_t cached = std::max<int64_t>(1, (1 << 20) / (panels * panel * panel * int64_t(sizeof(T))));
  for (int64_t group = first_block; group < last_block; group += cached) {
    const int64_t group_end = std::min(last_block, group + cached);
    for (int64_t i = 0; layer.weight.is_updated() && i < tiles.count; ++i) {
      const int64_t row = first_row + tiles.begin(i);
      const int height = tiles.height(i);
      for (int64_t block = group; block < group_end; ++block) {
        const int64_t column = block * panel, width = std::min(panel, layer.in - column);
        gradient_tile(layer, buffers, panels, 0, panels, row, height, column, tile);
        update(layer.weight, row * layer.in + column, layer.in, height, width, tile, average_rate);
      }
    }
  }
  if (!layer.bias.is_updated() || first_block > 0 || first_block == last_block) return;
  for (int64_t row = first_row; row < last_row; row += panel) {
    const int64_t rows = std::min(panel, last_row - row);
    for (int64_t m = 0; m < rows; ++m) tile[m] = row_sum(buffers, 0, panels, row + m) * T(layer.bias_cancels ? 0 : 1);
    update(layer.bias, row, 0, 1, rows, tile, average_rate);
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

// The update of a network by all threads.
template <class T>
void update_network(const Worker& worker, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers,
                    T average_rate) {
  const int64_t panels = buffers.panels;
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    if (!layer.weight.is_updated() && !layer.bias.is_updated()) continue;
    switch (layer.kind) {
      case LayerKind::linear:
        linear_update(worker, layer, buffers.layers[l], panels, average_rate);
        break;
      case LayerKind::batch_norm:
        if (l % worker.team.threads == worker.thread)
          batch_norm_update(layer, buffers.layers[l], int(panels / worker.team.panels), average_rate);
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
        break;  // without parameters
    }
  }
}
