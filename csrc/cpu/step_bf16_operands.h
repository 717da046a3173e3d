// The operands of weight gradients, rounded to bfloat16, with the samples in pairs. Included once for each instruction
// set whose products take them, inside its namespace, after panels/bf16.h.

// Rows [from, to) of a panel, rounded.
inline void round_rows(const float* x, int64_t rows, int64_t from, int64_t to, uint16_t* out) {
  for (int64_t r = from; r < to; ++r)
    _mm512_store_si512(out + r * panel,
                       r < rows ? round_both(_mm512_load_ps(x + r * panel), _mm512_load_ps(x + r * panel + 16))
                                : _mm512_setzero_si512());
}

// Elements of a panel of 32 features in x_transposed: [16 pairs][32][2].
constexpr int64_t transposed_panel = panel * panel;

// Sixteen rows of a panel, rounded: out[16 pairs][32][2], of the 32 the first.
inline void transpose_pairs(const float* x, int64_t rows, int64_t from, uint16_t* out) {
  alignas(64) uint16_t rounded[16 * panel];
  round_rows(x + from * panel, rows - from, 0, 16, rounded);
  transpose_16x16(reinterpret_cast<const float*>(rounded), 16, reinterpret_cast<float*>(out), panel);
}

// From a worker's panels: grad_z rounded, and x with the samples as rows.
inline void transpose_input(const Pass& pass, const StepLayer<float>& layer, const LayerBuffers<float>& buffers,
                            int64_t panels) {
  const Rows32 inputs(pass.worker, layer.in), outputs(pass.worker, layer.out);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    round_rows(buffers.grad_z.at(p), layer.out, outputs.from, outputs.to,
               buffers.grad_rounded + p * padded(layer.out) * panel);
    for (int64_t row = inputs.from; row < inputs.to; row += 16)
      transpose_pairs(buffers.x.at(p), layer.in, row,
                      buffers.x_transposed + (row / panel * panels + p) * transposed_panel + row % panel * 2);
  }
}
