// Sums of weight gradients from operands rounded to bfloat16, tile by tile (VDPBF16PS). Included for AVX-512 BF16
// alone, inside its namespace, after step_bf16_operands.h, in the place of step_weight_gradient.h.

// Rows of a tile of a weight gradient.
constexpr int gradient_rows = tile_rows;

// As thin_gradient of step_weight_gradient.h. A row of a panel is one vector; the rows after the last that is wanted
// are there, and of no use.
inline void thin_gradient(const LayerBuffers<float>& buffers, int64_t first, int64_t last, const uint16_t* grad,
                          int64_t stride, int rows, int64_t in, float* tile) {
  for (int64_t i = 0; i < in; ++i) {
    __m512 sum[gradient_rows] = {};
    for (int64_t p = first; p < last; ++p) {
      const float* x = buffers.x.at(p) + i * panel;
      const __m512bh rounded = (__m512bh)round_both(_mm512_load_ps(x), _mm512_load_ps(x + 16));
      const uint16_t* g = grad + (p - first) * stride;
#pragma GCC unroll 16
      for (int m = 0; m < gradient_rows; ++m)
        sum[m] = _mm512_dpbf16_ps(sum[m], (__m512bh)_mm512_load_si512(g + m * panel), rounded);
    }
#pragma GCC unroll 16
    for (int m = 0; m < gradient_rows; ++m)
      if (m < rows) tile[m * panel + i] = _mm512_reduce_add_ps(sum[m]);
  }
}

// The sums of one tile of the weight gradient over the panels [first, last) of `panels`.
inline void gradient_tile(const StepLayer<float>& layer, const LayerBuffers<float>& buffers, int64_t panels,
                          int64_t first, int64_t last, int64_t row, int height, int64_t column, float* tile) {
  const int64_t stride = padded(layer.out) * panel, at = row * layer.in + column;
  const uint16_t* grad = buffers.grad_rounded + first * stride + row * panel;
  if (layer.in <= thin_width) return thin_gradient(buffers, first, last, grad, stride, height, layer.in, tile);
  TileTask<float> task{};
  task.a = reinterpret_cast<const float*>(grad);
  task.a_next = stride / elements_paired;
  task.b = reinterpret_cast<const float*>(buffers.x_transposed + (column / panel * panels + first) * transposed_panel);
  task.k = (last - first) * panel / elements_paired;
  task.c = tile;
  task.fetch_tile = {{layer.weight.value + at, layer.weight.exp_avg + at, layer.weight.exp_avg_sq + at}, layer.in};
  multiply<float, Storage::panels>(height, task);
}
