// Sums of weight gradients from operands rounded to bfloat16, tile by tile. Included for AMX alone, inside its
// namespace, after step_bf16_operands.h, in the place of step_weight_gradient.h.

// Rows of a tile of a weight gradient.
constexpr int gradient_rows = amx_rows;

// The sums of one tile of the weight gradient over the panels [first, last) of `panels`: up to 32 outputs by 32 inputs.
inline void gradient_tile(const StepLayer<float>& layer, const LayerBuffers<float>& buffers, int64_t panels,
                          int64_t first, int64_t last, int64_t row, int height, int64_t column, float* tile) {
  alignas(64) float whole[amx_rows * panel];
  float* c = height == amx_rows ? tile : whole;
  const uint16_t* grad = buffers.grad_rounded + (first * padded(layer.out) + row) * panel;
  const uint16_t* x = buffers.x_transposed + (column / panel * panels + first) * transposed_panel;
  amx_multiply({grad, 64, padded(layer.out) * 64, 16 * 64, x, 128, 16 * 128, 64}, last - first, false, c);
  if (c != tile) std::memcpy(tile, c, height * panel * sizeof(float));
}
