// Linear layers with operands rounded to bfloat16 and sums in float, on AMX tiles.
// Included for AMX alone, inside its namespace, after bf16.h, in the place of linear.h.
//
// A tile register holds 16 rows of 64 bytes. A product of two (16 rows x 32 of the sum by 32 of the sum x 16 columns)
// takes the second operand in pairs: two successive elements of the sum lie side by side. Four results are under way at
// once, so that each operand loaded serves twice.

constexpr int64_t amx_rows = 32;         // of a tile of results
constexpr int64_t amx_sum_block = 1024;  // a tile's rows of that many bfloat16 are 64 KiB

// GCC's intrinsics do not say that they read memory: before them, what was stored must be.
inline void memory_is_read() { __asm__ volatile("" ::: "memory"); }

// The tile registers of a thread, for the length of a scope.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
};

// c[32][32] (+)= a b: `a_step` bytes between its rows, a_next between steps of 32 of the sum and a_half between its two
// 16 rows; b in pairs, b_next bytes from step to step, b_row between its rows of pairs, b_half between its two halves.
struct AmxOperands {
  const void* a;
  int64_t a_row, a_next, a_half;
  const void* b;
  int64_t b_row, b_next, b_half;
};

inline void amx_multiply(const AmxOperands& o, int64_t steps, bool accumulate, float* c) {
  constexpr int64_t row = 32 * sizeof(float);
  memory_is_read();
  if (accumulate) {
    _tile_loadd(0, c, row);
    _tile_loadd(1, c + 16, row);
    _tile_loadd(2, c + 16 * 32, row);
    _tile_loadd(3, c + 16 * 32 + 16, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const char *a = static_cast<const char*>(o.a), *b = static_cast<const char*>(o.b);
  for (int64_t i = 0; i < steps; ++i, a += o.a_next, b += o.b_next) {
    _tile_loadd(4, a, o.a_row);
    _tile_loadd(6, b, o.b_row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + o.b_half, o.b_row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + o.a_half, o.a_row);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, row);
  _tile_stored(1, c + 16, row);
  _tile_stored(2, c + 16 * 32, row);
  _tile_stored(3, c + 16 * 32 + 16, row);
}

inline void linear_forward(const Pass& pass, const LinearLayer<float>& layer, const LinearBuffers<float>& buffers) {
  alignas(64) uint16_t tile[amx_rows * amx_sum_block];
  alignas(64) float sums[amx_rows * panel];
  const Worker& worker = pass.worker;
  const Rows32 outputs(worker, layer.out);
  pair_features(pass, layer.in, buffers.x, buffers.x_pairs);
  const bool output_saved = saves_output(layer.activation);
  for (int64_t row = outputs.from; row < outputs.to; row += amx_rows) {
    const int64_t height = std::min(amx_rows, layer.out - row);
    for (int64_t k = 0; k < layer.in; k += amx_sum_block) {
      const int64_t length = std::min(amx_sum_block, layer.in - k), steps = padded(length) / 32;
      for (int64_t m = 0; m < height; ++m)
        round_row(layer.weight + (row + m) * layer.in + k, length, tile + m * steps * 32);
      std::memset(tile + height * steps * 32, 0, (amx_rows - height) * steps * 32 * sizeof(uint16_t));
      for (int64_t j = 0; j < pass.count(); ++j) {
        const int64_t p = pass.index(j);
        float* z = (output_saved ? buffers.y : buffers.saved).at(p) + row * panel;
        const uint16_t* pairs = buffers.x_pairs + p * padded(layer.in) * panel + k * panel;
        const bool whole = height == amx_rows;
        float* c = whole ? z : sums;
        if (k > 0 && !whole) std::memcpy(c, z, height * panel * sizeof(float));
        amx_multiply({tile, steps * 64, 64, 16 * steps * 64, pairs, 128, 16 * 128, 64}, steps, k > 0, c);
        const bool finished = k + length == layer.in;
        if (finished && layer.bias != nullptr)
          for (int64_t m = 0; m < height; ++m)
#pragma omp simd
            for (int64_t i = 0; i < panel; ++i) c[m * panel + i] += layer.bias[row + m];
        if (finished) {
          float* y = buffers.y.at(p) + row * panel;
          activate(layer.activation, height * panel, c, y);
          clear_padding(height, pass.samples(p), y);
        }
        if (!whole && !(finished && output_saved)) std::memcpy(z, c, height * panel * sizeof(float));
      }
    }
  }
}

inline void linear_backward(const Pass& pass, const LinearLayer<float>& layer, const LinearBuffers<float>& buffers,
                            const GradientTarget<float>& target) {
  alignas(64) uint16_t tile[amx_rows * amx_sum_block];
  alignas(64) float sums[amx_rows * panel], transposed[32 * 32];
  const Worker& worker = pass.worker;
  const Rows32 inputs(worker, target.width);
  pair_features(pass, layer.out, buffers.grad_z, buffers.grad_pairs);
  for (int64_t row = inputs.from; row < inputs.to; row += amx_rows) {
    const int64_t height = std::min(amx_rows, target.width - row);
    for (int64_t k = 0; k < layer.out; k += amx_sum_block) {
      const int64_t length = std::min(amx_sum_block, layer.out - k), steps = padded(length) / 32;
      for (int64_t n = 0; n < steps; ++n) {
        const int64_t outs = std::min<int64_t>(32, length - n * 32);
        if (outs < 32 || height < amx_rows) std::memset(transposed, 0, sizeof transposed);
        transpose(outs, height, layer.weight + (k + n * 32) * layer.in + row, layer.in, transposed, 32);
        for (int64_t m = 0; m < amx_rows; ++m)
          _mm512_store_si512(tile + m * steps * 32 + n * 32,
                             round_both(_mm512_load_ps(transposed + m * 32), _mm512_load_ps(transposed + m * 32 + 16)));
      }
      for (int64_t j = 0; j < pass.count(); ++j) {
        const int64_t p = pass.index(j);
        float* grad = target.grad.at(p) + row * panel;
        const uint16_t* pairs = buffers.grad_pairs + p * padded(layer.out) * panel + k * panel;
        const bool whole = height == amx_rows;
        float* c = whole ? grad : sums;
        if (k > 0 && !whole) std::memcpy(c, grad, height * panel * sizeof(float));
        amx_multiply({tile, steps * 64, 64, 16 * steps * 64, pairs, 128, 16 * 128, 64}, steps, k > 0, c);
        if (k + length == layer.out) {
          target.pass_on(pass, p, row, height, c);
        }
        if (!whole) std::memcpy(grad, c, height * panel * sizeof(float));
      }
    }
  }
}
