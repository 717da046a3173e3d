// Sums of weight gradients from operands rounded to bfloat16, tile by tile. Included for AMX alone, inside its
// namespace, in the place of step_weight_gradient.h.

// Rows of a tile of a weight gradient.
constexpr int gradient_rows = amx_rows;

// Rows [from, to) of a panel, rounded.
inline void round_rows(const float* x, int64_t rows, int64_t from, int64_t to, uint16_t* out) {
  for (int64_t r = from; r < to; ++r)
    _mm512_store_si512(out + r * panel,
                       r < rows ? round_both(_mm512_load_ps(x + r * panel), _mm512_load_ps(x + r * panel + 16))
                                : _mm512_setzero_si512());
}

// Sixteen rows of a panel, rounded, with the samples in pairs: out[16 pairs][16 rows][2].
inline void transpose_pairs(const float* x, int64_t rows, int64_t from, uint16_t* out) {
  alignas(64) uint16_t rounded[16 * panel];
  round_rows(x + from * panel, rows - from, 0, 16, rounded);
  transpose_16x16(reinterpret_cast<const float*>(rounded), 16, reinterpret_cast<float*>(out), 16);
}

// The operands of a weight gradient, from a worker's panels: grad_z rounded, and x with the samples in pairs.
inline void transpose_input(const Pass& pass, const StepLayer<float>& layer, const LayerBuffers<float>& buffers,
                            int64_t panels) {
  const Rows32 inputs(pass.worker, layer.in), outputs(pass.worker, layer.out);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    round_rows(buffers.grad_z.at(p), layer.out, outputs.from, outputs.to,
               buffers.grad_rounded + p * padded(layer.out) * panel);
    for (int64_t row = inputs.from; row < inputs.to; row += 16)
      transpose_pairs(buffers.x.at(p), layer.in, row, buffers.x_transposed + (row / 16 * panels + p) * 16 * panel);
  }
}

// The sums of one tile of the weight gradient over the panels [first, last) of `panels`: up to 32 outputs by 32 inputs.
inline void gradient_tile(const StepLayer<float>& layer, const LayerBuffers<float>& buffers, int64_t panels,
                          int64_t first, int64_t last, int64_t row, int height, int64_t column, float* tile) {
  alignas(64) float whole[amx_rows * panel];
  float* c = height == amx_rows ? tile : whole;
  const uint16_t* grad = buffers.grad_rounded + (first * padded(layer.out) + row) * panel;
  const uint16_t* x = buffers.x_transposed + (column / 16 * panels + first) * 16 * panel;
  amx_multiply({grad, 64, padded(layer.out) * 64, 16 * 64, x, 64, 16 * 64, panels * 16 * 64}, last - first, false, c);
  if (c != tile) std::memcpy(tile, c, height * panel * sizeof(float));
}
