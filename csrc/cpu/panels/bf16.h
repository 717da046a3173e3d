// Operands rounded to bfloat16, for the products that take those: what precision="bf16" means. Included once for each
// instruction set that has them, inside its namespace, after layers.h.
//
// Such a product sums up in pairs: of both operands two successive elements of the sum lie side by side. Rounding is to
// nearest even, and subnormal numbers are zeros, whatever the processor's control register says.

// Sixteen floats each, as 32 bfloat16 in a row.
inline __m512i round_both(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The same, in pairs of one of each.
alignas(64) constexpr uint16_t pair_order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
inline __m512i round_pairs(__m512 low, __m512 high) {
  return _mm512_permutexvar_epi16(_mm512_load_si512(pair_order), round_both(low, high));
}

// The first n of sixteen floats, however large or small n is, and zeros.
inline __m512 load_first(int64_t n, const float* from) {
  const __mmask16 mask = n >= 16 ? 0xffff : n <= 0 ? 0 : __mmask16((1u << n) - 1);
  return _mm512_maskz_loadu_ps(mask, from);
}

// A row of n floats, rounded, and zeros up to a whole number of 32.
inline void round_row(const float* from, int64_t n, void* to) {
  __m512i* out = static_cast<__m512i*>(to);
  for (; n >= 32; n -= 32, from += 32)
    _mm512_store_si512(out++, round_both(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)));
  if (n > 0) _mm512_store_si512(out, round_both(load_first(n, from), load_first(n - 16, from + 16)));
}

// Rows [from, to) of a panel that has `rows`, `from` even, in pairs: out[r / 2][32][2].
inline void pair_rows(const float* x, int64_t rows, int64_t from, int64_t to, uint16_t* out) {
  for (int64_t r = from; r < to; r += 2) {
    for (int64_t c = 0; c < panel; c += 16) {
      const __m512 low = r < rows ? _mm512_load_ps(x + r * panel + c) : _mm512_setzero_ps();
      const __m512 high = r + 1 < rows ? _mm512_load_ps(x + (r + 1) * panel + c) : _mm512_setzero_ps();
      _mm512_store_si512(out + r * panel + 2 * c, round_pairs(low, high));
    }
  }
}

// Each worker's share of n, in whole 32s.
struct Rows32 {
  int64_t from, to;

  Rows32(const Worker& worker, int64_t n)
      : from(worker.from(padded(n) / 32) * 32), to(worker.to(padded(n) / 32) * 32) {}
};

// The features of a worker's panels in pairs, as the second operand of a product; with the other workers' shares.
inline void pair_features(const Pass& pass, int64_t width, const Panels<float>& x, uint16_t* pairs) {
  const Rows32 rows(pass.worker, width);
  for (int64_t j = 0; j < pass.count(); ++j) {
    const int64_t p = pass.index(j);
    pair_rows(x.at(p), width, rows.from, rows.to, pairs + p * padded(width) * panel);
  }
  pass.worker.layer_done();
}
