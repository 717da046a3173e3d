// Transposition, included once for each instruction set, inside its namespace.

// dst[c][r] = src[r][c] for rows x cols, strides in elements.
template <class T>
void transpose(int64_t rows, int64_t cols, const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
  int64_t done = 0;
#if defined(FASTGAN_ISA_AVX512)
  if constexpr (sizeof(T) == 4) {
    for (; done + 16 <= rows; done += 16) {
      int64_t c = 0;
      for (; c + 16 <= cols; c += 16)
        transpose_16x16(src + done * src_stride + c, src_stride, dst + c * dst_stride + done, dst_stride);
      for (; c < cols; ++c)
        for (int64_t r = done; r < done + 16; ++r) dst[c * dst_stride + r] = src[r * src_stride + c];
    }
  }
#endif
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t r = done; r < rows; ++r) dst[c * dst_stride + r] = src[r * src_stride + c];
}
