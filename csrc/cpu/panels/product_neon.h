// The sums of a tile on NEON, whose fused multiply-add takes one factor from a lane of a register: no instruction
// spreads an element of the tile over a register of its own. Included once for each instruction set that has it, inside
// its namespace, before product.h.

// sum += a[lane] b; a number has one lane. As assembly: of vfmaq_laneq_f32 with a lane that two of them share, g++ 12
// makes such a spreading instruction after all.
template <int lane, class A, class B, class V>
FASTGAN_INLINE void multiply_add_lane(A a, B b, V& sum) {
  if constexpr (sizeof(sum[0]) == 4)
    asm("fmla %0.4s, %1.4s, %2.s[%c3]" : "+w"(sum) : "w"(b), "w"(a), "i"(lane));
  else
    asm("fmla %0.2d, %1.2d, %2.d[%c3]" : "+w"(sum) : "w"(b), "w"(a), "i"(lane));
}

FASTGAN_INLINE float32x4_t load_register(const float* x) { return vld1q_f32(x); }
FASTGAN_INLINE float64x2_t load_register(const double* x) { return vld1q_f64(x); }
FASTGAN_INLINE float32x2_t load_two(const float* x) { return vld1_f32(x); }
FASTGAN_INLINE float64x2_t load_two(const double* x) { return vld1q_f64(x); }

// Adds to the sums of each row m the products of two successive k, a[m][k] b[k][0] and a[m][k] b[k][1]: of the first k
// to `first`, of the second to `second`. Where a is packed, the rows of one k lie side by side, and up to a register's
// more may be read; else the two k of a row do.
template <bool is_packed, int row_step, int k_step, class T, class Sums, int... m>
FASTGAN_INLINE void add_two(std::integer_sequence<int, m...>, const T* a, const T* b, int64_t b_step, Sums& first,
                            Sums& second) {
  using Register = decltype(load_register(a));
  constexpr int lanes = sizeof(Register) / sizeof(T), rows = sizeof...(m);
  const Register b0 = load_register(b), b1 = load_register(b + lanes);
  const Register c0 = load_register(b + b_step), c1 = load_register(b + b_step + lanes);
  if constexpr (is_packed) {
    Register from[(rows + lanes - 1) / lanes];
    for (int i = 0; i * lanes < rows; ++i) from[i] = load_register(a + i * lanes);
    ((multiply_add_lane<m % lanes>(from[m / lanes], b0, first[m][0]),
      multiply_add_lane<m % lanes>(from[m / lanes], b1, first[m][1])),
     ...);
    for (int i = 0; i * lanes < rows; ++i) from[i] = load_register(a + k_step + i * lanes);
    ((multiply_add_lane<m % lanes>(from[m / lanes], c0, second[m][0]),
      multiply_add_lane<m % lanes>(from[m / lanes], c1, second[m][1])),
     ...);
  } else {
    const auto add = [&](auto from, auto& one, auto& other) __attribute__((always_inline)) {
      multiply_add_lane<0>(from, b0, one[0]), multiply_add_lane<0>(from, b1, one[1]);
      multiply_add_lane<1>(from, c0, other[0]), multiply_add_lane<1>(from, c1, other[1]);
    };
    (add(load_two(a + m * row_step), first[m], second[m]), ...);
  }
}
