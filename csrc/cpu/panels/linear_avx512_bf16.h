// Linear layers with operands rounded to bfloat16 and sums in float (VDPBF16PS). Included for AVX-512 BF16 alone,
// inside its namespace, after bf16.h, in the place of linear.h.
//
// The products are those of product.h, and the order of the work is that of linear.h: an element of an operand is a
// pair, and a sum half as many of them long.

// The longest part of a sum that is done at once.
constexpr int64_t paired_block = 2 * sum_block<float>;

// As in linear.h.
constexpr int64_t panels_at_once = 16;

// Rows of a weight, as Storage::copied.
inline void copy_pairs(const float* weight, int64_t stride, int rows, int64_t length, float* tile) {
  for (int m = 0; m < rows; ++m) round_row(weight + m * stride, length, tile + m * copied_stride<float>);
}

// Columns of a weight, as Storage::packed: `columns` of them are left in its rows.
inline void pack_pairs(const float* weight, int64_t stride, int64_t columns, int64_t length, float* tile) {
  for (; length >= 2; length -= 2, weight += 2 * stride, tile += packed_stride)
    _mm512_store_si512(tile, round_pairs(load_first(columns, weight), load_first(columns, weight + stride)));
  if (length > 0) _mm512_store_si512(tile, round_pairs(load_first(columns, weight), _mm512_setzero_ps()));
}

inline void linear_forward(const Pass& pass, const LinearLayer<float>& layer, const LinearBuffers<float>& buffers) {
  alignas(64) float tile[tile_rows * copied_stride<float>];
  pair_features(pass, layer.in, buffers.x, buffers.x_pairs);
  const Tiles tiles(layer.out);
  const Epilogue epilogue = forward_epilogue(layer.activation);
  // Other activations take a pass over the tile while it is in the first-level cache.
  const bool more = epilogue == Epilogue::bias && layer.activation.activation != Activation::identity;
  const Panels<float> z = more ? buffers.saved : buffers.y;
  const Worker& worker = pass.worker;
  for (int64_t first = 0; first < pass.count(); first += panels_at_once) {
    const int64_t last = std::min(pass.count(), first + panels_at_once);
    for (int64_t k = 0; k < layer.in; k += paired_block) {
      const int64_t length = std::min(paired_block, layer.in - k), pairs = (length + 1) / 2;
      const bool finished = k + length == layer.in;
      for (int64_t i = worker.from(tiles.count); i < worker.to(tiles.count); ++i) {
        const int64_t row = tiles.begin(i);
        const int height = tiles.height(i);
        copy_pairs(layer.weight + row * layer.in + k, layer.in, height, length, tile);
        for (int64_t j = first; j < last; ++j) {
          const int64_t p = pass.index(j);
          TileTask<float> task{};
          task.a = tile;
          task.b = reinterpret_cast<const float*>(buffers.x_pairs + (p * padded(layer.in) + k) * panel);
          task.k = pairs;
          task.c = z.at(p) + row * panel;
          task.accumulate = k > 0;
          task.epilogue = finished ? epilogue : Epilogue::none;
          task.bias = layer.bias == nullptr ? nullptr : layer.bias + row;
          task.slope = layer.activation.negative_slope;
          // The next tile's rows, as in linear.h.
          const int64_t fetched = (j - first) * ((pairs + panel - 1) / panel);
          task.fetch.from = tile;  // nothing
          if (fetched < height) task.fetch = {layer.weight + (row + height + fetched) * layer.in + k, layer.in, 16};
          multiply<float, Storage::copied>(height, task);
          if (!finished) continue;
          float* const y = buffers.y.at(p) + row * panel;
          if (more) activate(layer.activation, height * panel, task.c, y);
          clear_padding(height, pass.samples(p), y);
        }
      }
    }
  }
}

inline void linear_backward(const Pass& pass, const LinearLayer<float>& layer, const LinearBuffers<float>& buffers,
                            const GradientTarget<float>& target) {
  alignas(64) float tile[sum_block<float> * packed_stride];
  pair_features(pass, layer.out, buffers.grad_z, buffers.grad_pairs);
  const Tiles tiles(target.width);
  const Epilogue epilogue = backward_epilogue(target.activation);
  const bool more = epilogue == Epilogue::none && target.activation.activation != Activation::identity;
  const Worker& worker = pass.worker;
  for (int64_t first = 0; first < pass.count(); first += panels_at_once) {
    const int64_t last = std::min(pass.count(), first + panels_at_once);
    for (int64_t k = 0; k < layer.out; k += paired_block) {
      const int64_t length = std::min(paired_block, layer.out - k);
      const bool finished = k + length == layer.out;
      for (int64_t i = worker.from(tiles.count); i < worker.to(tiles.count); ++i) {
        const int64_t row = tiles.begin(i);
        const int height = tiles.height(i);
        const float* weight = layer.weight + k * layer.in + row;
        pack_pairs(weight, layer.in, layer.in - row, length, tile);
        for (int64_t j = first; j < last; ++j) {
          const int64_t p = pass.index(j);
          TileTask<float> task{};
          task.a = tile;
          task.b = reinterpret_cast<const float*>(buffers.grad_pairs + (p * padded(layer.out) + k) * panel);
          task.k = (length + 1) / 2;
          task.c = target.grad.at(p) + row * panel;
          task.accumulate = k > 0;
          task.epilogue = finished ? epilogue : Epilogue::none;
          task.saved = target.saved.at(p) + row * panel;
          task.slope = target.activation.negative_slope;
          // Where the next tile's columns end, of the even and with the next panel of the odd rows. Where they begin is
          // in this tile's last cache line, or the next.
          task.fetch.from = tile;  // nothing
          if (j - first < 2)
            task.fetch = {weight + 2 * height - 1 + (j - first) * layer.in, 2 * panel * layer.in, 2 * layer.in};
          multiply<float, Storage::packed>(height, task);
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
