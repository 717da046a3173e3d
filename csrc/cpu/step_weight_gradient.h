// Sums of weight gradients, tile by tile. Included once for each instruction set, inside its namespace, after
// panels/linear.h; step_weight_gradient_amx.h has its place where products take bfloat16.

// Rows of a tile of a weight gradient.
constexpr int gradient_rows = tile_rows;

// x with the samples as rows, for the weight gradient; where the panels of grad_z are in groups, the first of each,
// then the second, and so on.
template <class T>
void transpose_input(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers, int64_t panels) {
  if (layer.in <= thin_width) return;
  const int64_t blocks = (layer.in + panel - 1) / panel, group = buffers.grad_z.group;
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j), place = p % group * (panels / group) + p / group;
    for (int64_t block = pass.worker.from(blocks); block < pass.worker.to(blocks); ++block)
      transpose(std::min(panel, layer.in - block * panel), panel, buffers.x.at(p) + block * panel * panel, panel,
                buffers.x_rows + (block * panels + place) * panel * panel, panel);
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
  const int64_t at = row * layer.in + column, group = buffers.grad_z.group, each = (last - first) / group;
  TileTask<T> task{};
  task.a_next = buffers.grad_z.stride;
  task.k = each * panel;
  task.short_k = buffers.short_panels / group * panel;
  task.short_chunk = (buffers.short_samples + 3) / 4 * 4;
  task.c = tile;
  task.fetch_tile = {{layer.weight.value + at, layer.weight.exp_avg + at, layer.weight.exp_avg_sq + at}, layer.in};
  for (int64_t k = 0; k < group; ++k) {
    task.a = buffers.grad_z.at(first + k) + row * panel;
    task.b = buffers.x_rows + (column * panels + (first + k * each) * panel) * panel;
    task.accumulate = k > 0;
    multiply<T, Storage::panels>(height, task);
  }
}
