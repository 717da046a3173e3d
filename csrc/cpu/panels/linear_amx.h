// Linear layers with operands rounded to bfloat16 and sums in float, on AMX tiles: what precision="bf16" means.
// Included for AMX alone, inside its namespace, in the place of linear.h.
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

// Sixteen floats each, as 32 bfloat16 in a row.
inline __m512i round_both(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Rows [from, to) of a panel, `from` even, in pairs: out[r / 2][32][2].
inline void pair_rows(const float* x, int64_t rows, int64_t from, int64_t to, uint16_t* out) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = uint16_t(i / 2 + i % 2 * 16);
  const __m512i interleaved = _mm512_load_si512(order);
  for (int64_t r = from; r < to; r += 2) {
    for (int64_t c = 0; c < panel; c += 16) {
      const __m512 low = r < rows ? _mm512_load_ps(x + r * panel + c) : _mm512_setzero_ps();
      const __m512 high = r + 1 < rows ? _mm512_load_ps(x + (r + 1) * panel + c) : _mm512_setzero_ps();
      _mm512_store_si512(out + r * panel + 2 * c, _mm512_permutexvar_epi16(interleaved, round_both(low, high)));
    }
  }
}

// Each worker's share of n, in whole 32s.
struct Rows32 {
  int64_t from, to;

  Rows32(const Worker& worker, int64_t n)
      : from(worker.from(padded(n) / 32) * 32), to(worker.to(padded(n) / 32) * 32) {}
};

inline void linear_forward(const Pass& pass, const LinearLayer<float>& layer, const LinearBuffers<float>& buffers) {
  alignas(64) uint16_t tile[amx_rows * amx_sum_block];
  alignas(64) float sums[amx_rows * panel];
  const Worker& worker = pass.worker;
  const Rows32 inputs(worker, layer.in), outputs(worker, layer.out);
  for (int64_t j = 0; j < pass.count(); ++j)
    pair_rows(buffers.x.at(pass.index(j)), layer.in, inputs.from, inputs.to,
              buffers.x_pairs + pass.index(j) * padded(layer.in) * panel);
  worker.layer_done();
  const bool output_saved = saves_output(layer.activation);
  for (int64_t row = outputs.from; row < outputs.to; row += amx_rows) {
    const int64_t height = std::min(amx_rows, layer.out - row);
    for (int64_t k = 0; k < layer.in; k += amx_sum_block) {
      const int64_t length = std::min(amx_sum_block, layer.in - k), steps = padded(length) / 32;
      for (int64_t m = 0; m < amx_rows; ++m) {
        const float* weight = layer.weight + (row + m) * layer.in + k;
        for (int64_t n = 0; n < steps * 32; n += 32) {
          const auto part = [&](int64_t at) {
            const int64_t left = m < height ? length - at : 0;
            const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : __mmask16((1u << left) - 1);
            return _mm512_maskz_loadu_ps(mask, weight + at);
          };
          _mm512_store_si512(tile + m * steps * 32 + n, round_both(part(n), part(n + 16)));
        }
      }
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
  const Rows32 outputs(worker, layer.out), inputs(worker, target.width);
  for (int64_t j = 0; j < pass.count(); ++j)
    pair_rows(buffers.grad_z.at(pass.index(j)), layer.out, outputs.from, outputs.to,
              buffers.grad_pairs + pass.index(j) * padded(layer.out) * panel);
  worker.layer_done();
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
