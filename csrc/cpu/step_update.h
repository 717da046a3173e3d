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

// What a step with penalties adds to D's gradients (step_penalties.h); without any elsewhere.
template <class T>
struct PenaltyPass {
  unsigned parts = 0;  // of D's batch, a bit each
  int layout = 1;
  bool is_smooth = false;  // some activation has a second derivative
  int with_slopes = 2;     // so many parts have a derivative by the logit: not the points between real data and fakes,
                           // unless the penalty there is of a function of it
  const T* slopes = nullptr;

  bool exists() const { return parts != 0; }
  bool has(int part) const { return (parts >> part & 1) != 0; }
  // grad_z of such a panel is the gradient of D's output, not of the loss.
  bool is_of_output(int64_t p) const { return exists() && !is_smooth && has(int(p % layout)); }
};

// A finished tile of a gradient, of rows x n elements from `at` on: an update, or where it is clipped, a copy.
template <class T>
void hand_in(const AdamParameter<T>& parameter, T* kept, int64_t at, int64_t stride, int rows, int64_t n, const T* grad,
             T average_rate) {
  if (kept == nullptr) return update(parameter, at, stride, rows, n, grad, average_rate);
  for (int m = 0; m < rows; ++m) std::memcpy(kept + at + m * stride, grad + m * panel, n * sizeof(T));
}

// The sums of a row of grad_z over the panels [first, last), of the loss's gradient.
template <class T>
T row_sum(const LayerBuffers<T>& buffers, int64_t first, int64_t last, int64_t row, const PenaltyPass<T>& penalty) {
  Vector<T> sum{};
  for (int64_t p = first; p < last; ++p) {
    const T* grad = buffers.grad_z.at(p) + row * panel;
    const auto at = [](const T* x) { return *reinterpret_cast<const Vector<T>*>(x); };
    if (!penalty.is_of_output(p))
      for (int64_t c = 0; c < panel; c += lanes<T>) sum += at(grad + c);
    else if (p % penalty.layout < penalty.with_slopes)
      for (int64_t c = 0; c < panel; c += lanes<T>) sum += at(grad + c) * at(penalty.slopes + p * panel + c);
  }
  T total = 0;
  for (int l = 0; l < lanes<T>; ++l) total += sum[l];
  return total;
}

template <class T>
void add_tangent_tile(const StepLayer<T>&, const LayerBuffers<T>&, int64_t, const PenaltyPass<T>&, int64_t, int,
                      int64_t, T*);

// A thread's share of a linear layer: its outputs, or where these are few its inputs. The same at each step, so that
// the weights and moments stay in its cache (whoever is free taking the next tile: `ring` 20 % slower in this phase).
template <class T>
void linear_update(const Worker& worker, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels,
                   T average_rate, const PenaltyPass<T>& penalty) {
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
#if !defined(FASTGAN_ISA_BF16)
        if (penalty.exists() && penalty.is_smooth)
          add_tangent_tile(layer, buffers, panels, penalty, row, height, column, tile);
#endif
        hand_in(layer.weight, buffers.gradient, row * layer.in + column, layer.in, height, width, tile, average_rate);
      }
    }
  }
  if (!layer.bias.is_updated() || first_block > 0 || first_block == last_block) return;
  T* const kept = buffers.gradient == nullptr ? nullptr : buffers.gradient + layer.out * layer.in;
  for (int64_t row = first_row; row < last_row; row += panel) {
    const int64_t rows = std::min(panel, last_row - row);
    for (int64_t m = 0; m < rows; ++m)
      tile[m] = row_sum(buffers, 0, panels, row + m, penalty) * T(layer.bias_cancels ? 0 : 1);
    hand_in(layer.bias, kept, row, 0, 1, rows, tile, average_rate);
  }
}

// After batch_norm_sums of all its parts.
template <class T>
void batch_norm_update(const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int parts, T average_rate) {
  T grad[panel] = {};
  const int64_t width = layer.out;
  for (int64_t c = 0; c < width; c += panel) {
    const int64_t n = std::min(panel, width - c);
    for (const bool is_bias : {false, true}) {
      const AdamParameter<T>& parameter = is_bias ? layer.bias : layer.weight;
      if (!parameter.is_updated()) continue;
      for (int64_t i = 0; i < n; ++i) {
        grad[i] = 0;
        for (int part = 0; part < parts; ++part)
          grad[i] += buffers.sums[part * 2 * width + (is_bias ? 0 : width) + c + i];
      }
      T* const kept = buffers.gradient == nullptr ? nullptr : buffers.gradient + (is_bias ? width : 0);
      hand_in(parameter, kept, c, 0, 1, n, grad, average_rate);
    }
  }
}

template <class T>
int64_t weight_elements(const StepLayer<T>& layer) {
  return layer.kind == LayerKind::linear ? layer.out * layer.in : layer.out;
}

// Calls f(parameter, gradient, elements) of all that are updated of some layers.
template <class T, class F>
void for_updated(const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, LayerRange range, const F& f) {
  for (int l = range.first; l < range.last; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    if (layer.weight.is_updated()) f(layer.weight, buffers.layers[l].gradient, weight_elements(layer));
    if (layer.bias.is_updated()) f(layer.bias, buffers.layers[l].gradient + weight_elements(layer), layer.out);
  }
}

// Elements [at, at + n) of a gradient that was handed in, added up over all processes in the order of their ranks.
template <class T>
void sum_of_all(const GradientsOfAll& all, const T* gradient, int64_t at, int64_t n, T* sum) {
  const T* const first = gradient + all.first + at;
  std::memcpy(sum, first, n * sizeof(T));
  for (int64_t p = 1; p < all.count; ++p) {
    const T* const other = first + p * all.stride;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] += other[i];
  }
}

// The update by the gradients of some layers that were handed in, times `gradient_scale`, and with a clip_norm above 0
// as torch.nn.utils.clip_grad_norm_ leaves them, for which it takes all layers at once.
template <class T>
void stored_update(const Worker& worker, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers,
                   LayerRange range, double clip_norm, double gradient_scale, T average_rate) {
  const int64_t thread = worker.thread, threads = worker.team.threads;
  const auto for_own_chunks = [&](const auto& f) {
    int64_t chunk = 0;
    for_updated(network, buffers, range, [&](const AdamParameter<T>& parameter, const T* gradient, int64_t n) {
      for (int64_t at = 0; at < n; at += clip_chunk, ++chunk)
        if (chunk % threads == thread) f(chunk, parameter, gradient, at, std::min(n, at + clip_chunk));
    });
    return chunk;
  };
  T scale = T(gradient_scale);
  worker.team.barrier.wait();
  if (clip_norm > 0) {
    const int64_t chunks =
        for_own_chunks([&](int64_t chunk, const AdamParameter<T>&, const T* gradient, int64_t at, int64_t end) {
          double total = 0;
          alignas(64) T part[panel];
          for (int64_t n = 0; at < end; at += n) {
            n = std::min<int64_t>(end - at, panel);
            sum_of_all(network.all, gradient, at, n, part);
            for (int64_t i = 0; i < n; ++i) total += double(part[i]) * double(part[i]);
          }
          buffers.squares[chunk] = total;
        });
    worker.team.barrier.wait();
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += buffers.squares[chunk];
    const double wanted = clip_norm / (gradient_scale * std::sqrt(total) + 1e-6);
    scale = T(gradient_scale * (wanted > 1 ? 1 : wanted));  // NaN stays
  }
  for_own_chunks([&](int64_t, const AdamParameter<T>& parameter, const T* gradient, int64_t at, int64_t end) {
    alignas(64) T tile[gradient_rows * panel] = {};
    while (at < end) {
      const int64_t n = std::min<int64_t>(end - at, gradient_rows * panel), rows = n < panel ? 1 : n / panel;
      const int64_t width = std::min(n, panel);
      sum_of_all(network.all, gradient, at, rows * width, tile);
      for (int64_t i = 0; i < rows * width; ++i) tile[i] *= scale;
      update(parameter, at, panel, int(rows), width, tile, average_rate);
      at += rows * width;
    }
  });
}

// The gradients of some layers by all threads, each applied as it is finished, or handed in.
template <class T>
void weight_gradients(const Worker& worker, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers,
                      LayerRange range, T average_rate, int parts, const PenaltyPass<T>& penalty) {
  for (int l = range.first; l < range.last; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    if (!layer.weight.is_updated() && !layer.bias.is_updated()) continue;
    LayerBuffers<T> own = buffers.layers[l];
    switch (layer.kind) {
      case LayerKind::linear:
        if (penalty.exists() && !penalty.is_smooth && layer.in <= thin_width) own.x = own.combined;
        linear_update(worker, layer, own, buffers.panels, average_rate, penalty);
        break;
      case LayerKind::batch_norm:
        if (l % worker.team.threads == worker.thread) batch_norm_update(layer, own, parts, average_rate);
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
      case LayerKind::segmented:
        break;  // without parameters
    }
  }
}

// The update of a network by all threads; or its gradients, where these are handed in.
template <class T>
void update_network(const Worker& worker, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers,
                    T average_rate, double clip_norm, int parts, const PenaltyPass<T>& penalty) {
  const LayerRange all{0, network.count};
  weight_gradients(worker, network, buffers, all, average_rate, parts, penalty);
  if (clip_norm > 0 && network.gradients == nullptr)
    stored_update(worker, network, buffers, all, clip_norm, 1, average_rate);
}
