// adam_update on AVX-512. Included once for each instruction set that has it, inside its namespace.

// adam_update of floats, 16 at a time. A square root and a quotient cost about 35 cycles in hardware; from estimates of
// 14 bits, each made 28 bits by one step of Newton's, they cost 12, and the result is good to about an ulp.
struct AdamFloats {
  explicit AdamFloats(const AdamStep<float>& s, float average_rate)
      : sign(_mm512_set1_ps(s.sign)),
        decay(_mm512_set1_ps(s.weight_decay)),
        kept(_mm512_set1_ps(s.kept)),
        from_gradient(s.rate1 < 0.5f ? 0 : 0xffff),
        rate1(_mm512_set1_ps(s.rate1 < 0.5f ? s.rate1 : s.rate1 - 1)),
        beta2(_mm512_set1_ps(s.beta2)),
        rate2(_mm512_set1_ps(s.rate2)),
        size(_mm512_set1_ps(s.step_size)),
        eps(_mm512_set1_ps(s.eps)),
        from_value(average_rate < 0.5f ? 0 : 0xffff),
        average_rate(_mm512_set1_ps(average_rate < 0.5f ? average_rate : average_rate - 1)),
        decays(s.weight_decay != 0) {}

  void update(__mmask16 mask, const float* grad, float* param, float* exp_avg, float* exp_avg_sq, float* max_exp_avg_sq,
              float* average) const {
    const __m512 tiny = _mm512_set1_ps(1e-37f), huge = _mm512_set1_ps(1e37f);
    __m512 p = _mm512_maskz_loadu_ps(mask, param);
    __m512 g = _mm512_mul_ps(sign, _mm512_maskz_loadu_ps(mask, grad));
    if (decays) g = _mm512_fmadd_ps(decay, p, g);
    __m512 m = _mm512_maskz_loadu_ps(mask, exp_avg), v = _mm512_maskz_loadu_ps(mask, exp_avg_sq);
    m = _mm512_fmadd_ps(rate1, _mm512_sub_ps(g, m), _mm512_mask_blend_ps(from_gradient, m, g));
    v = _mm512_fmadd_ps(_mm512_mul_ps(rate2, g), g, _mm512_mul_ps(beta2, v));
    _mm512_mask_storeu_ps(exp_avg, mask, m);
    _mm512_mask_storeu_ps(exp_avg_sq, mask, v);
    if (max_exp_avg_sq != nullptr) {
      const __m512 most = _mm512_maskz_loadu_ps(mask, max_exp_avg_sq);
      const __mmask16 larger = _mm512_cmp_ps_mask(most, v, _CMP_LT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
      v = _mm512_mask_blend_ps(larger, most, v);
      _mm512_mask_storeu_ps(max_exp_avg_sq, mask, v);
    }
    // Outside of this range, and for NaN, the estimates fail.
    const __mmask16 usual = _mm512_cmp_ps_mask(v, tiny, _CMP_GE_OQ) & _mm512_cmp_ps_mask(v, huge, _CMP_LE_OQ);
    __m512 root = _mm512_rsqrt14_ps(v);
    const __m512 half = _mm512_mul_ps(_mm512_set1_ps(0.5f), v);
    root = _mm512_mul_ps(root, _mm512_fnmadd_ps(half, _mm512_mul_ps(root, root), _mm512_set1_ps(1.5f)));
    root = _mm512_mul_ps(root, v);
    if (__builtin_expect((usual & mask) != mask, 0)) root = _mm512_mask_sqrt_ps(root, __mmask16(~usual), v);
    const __m512 divisor = _mm512_add_ps(root, eps);
    __m512 inverse = _mm512_rcp14_ps(divisor);
    inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(divisor, inverse, _mm512_set1_ps(2.0f)));
    __m512 quotient = _mm512_mul_ps(_mm512_mul_ps(size, m), inverse);
    const __mmask16 divisible =
        _mm512_cmp_ps_mask(divisor, tiny, _CMP_GE_OQ) & _mm512_cmp_ps_mask(divisor, huge, _CMP_LE_OQ);
    if (__builtin_expect((divisible & mask) != mask, 0)) quotient = _mm512_div_ps(_mm512_mul_ps(size, m), divisor);
    p = _mm512_fmsub_ps(p, kept, quotient);
    _mm512_mask_storeu_ps(param, mask, p);
    if (average == nullptr) return;
    const __m512 old = _mm512_maskz_loadu_ps(mask, average);
    _mm512_mask_storeu_ps(
        average, mask, _mm512_fmadd_ps(average_rate, _mm512_sub_ps(p, old), _mm512_mask_blend_ps(from_value, old, p)));
  }

  const __m512 sign, decay, kept;
  const __mmask16 from_gradient;  // lerp's end, of which rate1 goes back where that is nearer
  const __m512 rate1, beta2, rate2, size, eps;
  const __mmask16 from_value;
  const __m512 average_rate;
  const bool decays;
};
