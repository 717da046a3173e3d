// Matrix products on panels, included once for each instruction set, inside its namespace.
//
// One tile of a product has up to tile_rows rows and a panel's 32 columns, all of which stay in registers over the
// whole sum: 14 x 32 floats fill 28 of AVX-512's 32 registers, 12 x 8 of them 24 of NEON's 32.

#if defined(FASTGAN_ISA_AVX512)
constexpr int vector_bytes = 64, tile_rows = 14;
#elif defined(FASTGAN_ISA_AVX2)
constexpr int vector_bytes = 32, tile_rows = 6;
#elif defined(FASTGAN_ISA_NEON)
constexpr int vector_bytes = 16, tile_rows = 12;
#else
constexpr int vector_bytes = 16, tile_rows = 6;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int lanes = vector_bytes / sizeof(T);

// The longest part of a sum that is done at once: a panel's rows of it and the tile of the other operand fit the
// first-level cache together (twice as long: 5 % slower on `wide` and `mnist`).
template <class T>
constexpr int64_t sum_block = 1024 / sizeof(T);

// Elements of a sum that lie side by side in one of both operands.
#if defined(FASTGAN_ISA_BF16)
constexpr int elements_paired = 2;  // of bfloat16, in the place of a float (bf16.h)
#else
constexpr int elements_paired = 1;
#endif

// sum + a b. VDPBF16PS sums up two products in the time of one fused multiply-add of floats.
template <class T>
FASTGAN_INLINE Vector<T> multiply_add(T a, Vector<T> b, Vector<T> sum) {
#if defined(FASTGAN_ISA_BF16)
  return (Vector<T>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#elif defined(FASTGAN_ISA_NEON)
  multiply_add_lane<0>(a, b, sum);
  return sum;
#else
  return sum + a * b;
#endif
}

// How the operand is stored whose elements are each multiplied with a row of a panel; m counts the tile's rows.
enum class Storage {
  copied,  // a[m * copied_stride + k]: rows of a weight, one after the other
  packed,  // a[k * packed_stride + m]: columns of a weight
  panels   // a[m * 32 + k % 32], a_next further for each 32 of k: rows of panels; of pairs, 16 in the place of 32
};
// Rows are set off from each other by an odd number of cache lines.
template <class T>
constexpr int copied_stride = sum_block<T> + 64 / sizeof(T);
constexpr int packed_stride = 16;

// What becomes of a finished sum while it is in registers; other activations follow in a pass of their own.
enum class Epilogue { none, bias, bias_relu, bias_leaky_relu, relu_backward, leaky_relu_backward };

// Lines that are fetched into the second-level cache meanwhile, one for each k: of the first 32 of k at from, from +
// step, ..., of the next 32 at from + after, ... Null for none.
template <class T>
struct Fetch {
  const T* from = nullptr;
  int64_t after = 0, step = 0;
};

// With panels, the rows of a tile in three matrices whose rows are `stride` apart, which are written next.
template <class T>
struct FetchTile {
  T* from[3] = {};
  int64_t stride = 0;
};

template <class T>
struct TileTask {
  const T* a;
  int64_t a_next;
  const T* b;  // k rows of 32
  int64_t k;
  int64_t short_k,
      short_chunk;  // with panels: of the last short_k, only the first so many of each panel's are not zero
  T* c;             // rows of 32
  bool accumulate;  // onto what is in c
  Epilogue epilogue;
  const T* bias;   // of the rows, or null
  const T* saved;  // like c: what a backward epilogue is a function of
  T slope;
  Fetch<T> fetch;
  FetchTile<T> fetch_tile;
};

template <class T, int rows, Storage storage>
void multiply_tile(const TileTask<T>& t) {
  using V = Vector<T>;
  constexpr int width = 2 * lanes<T>;
  // A product must have eight sums under way to keep both multipliers busy.
  constexpr int chains = rows >= 4 ? 1 : 4;
  constexpr int unrolled = rows >= 4 ? 2 : 4;  // 180 GFLOP/s; with 4 of 13 rows 168
  constexpr int64_t chunk = storage == Storage::panels ? panel / elements_paired : panel;
  constexpr int64_t row_step = storage == Storage::copied ? copied_stride<T> : storage == Storage::packed ? 1 : chunk;
  constexpr int64_t k_step = storage == Storage::packed ? packed_stride : 1;
  for (int64_t column = 0; column < panel; column += width) {
    V sum[chains][rows][2] = {};
    T* c = t.c + column;
    if (t.accumulate) {
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) __builtin_prefetch(c + m * panel, 1, 3);
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) __builtin_prefetch(c + m * panel + lanes<T>, 1, 3);
    }
    const T *a = t.a, *b = t.b + column, *fetched = t.fetch.from;
    const auto add = [&](int chain) __attribute__((always_inline)) {
      const V b0 = *reinterpret_cast<const V*>(b), b1 = *reinterpret_cast<const V*>(b + lanes<T>);
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        sum[chain][m][0] = multiply_add<T>(a[m * row_step], b0, sum[chain][m][0]);
        sum[chain][m][1] = multiply_add<T>(a[m * row_step], b1, sum[chain][m][1]);
      }
      a += k_step;
      b += panel;
    };
    int64_t left = t.k;
    for (; left >= chunk; left -= chunk) {
      // Of panels the next 32 of a row are elsewhere, where no hardware looks for them.
      const T* ahead = storage == Storage::panels ? a + t.a_next : fetched;
      const int64_t ahead_step = storage == Storage::panels ? 64 / sizeof(T) : t.fetch.step;
      int64_t length = chunk;
      if constexpr (storage == Storage::panels) {
        if (left <= t.short_k) length = t.short_chunk;
        const int64_t chunks = t.k / chunk, i = chunks - left / chunk, each = (rows + chunks - 1) / chunks;
        for (int64_t m = i * each; m < rows && m < (i + 1) * each; ++m)
          for (const T* base : t.fetch_tile.from)
            for (int64_t c = 0; c < panel; c += 64 / int64_t(sizeof(T)))
              __builtin_prefetch(base + m * t.fetch_tile.stride + c, 1, 2);
      }
      for (int64_t k = 0; k < length; k += unrolled) {
#pragma GCC unroll 4
        for (int i = 0; i < unrolled; ++i) {
          if (storage == Storage::panels)
            __builtin_prefetch(ahead, 0, 3);
          else
            __builtin_prefetch(ahead, 0, 2);
          ahead += ahead_step;
#if defined(FASTGAN_ISA_NEON)
          if (i % 2 == 1) continue;
          add_two<storage == Storage::packed, row_step, k_step>(std::make_integer_sequence<int, rows>(), a, b, panel,
                                                                sum[i % chains], sum[(i + 1) % chains]);
          a += 2 * k_step;
          b += 2 * panel;
#else
          add(i % chains);
#endif
        }
      }
      if constexpr (storage == Storage::panels) a += t.a_next - length, b += (chunk - length) * panel;
      fetched += t.fetch.after;
    }
    for (; left > 0; --left) add(0);
#pragma GCC unroll 4
    for (int chain = 1; chain < chains; ++chain)
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        sum[0][m][0] += sum[chain][m][0];
        sum[0][m][1] += sum[chain][m][1];
      }
    if (t.accumulate) {
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        sum[0][m][0] += *reinterpret_cast<const V*>(c + m * panel);
        sum[0][m][1] += *reinterpret_cast<const V*>(c + m * panel + lanes<T>);
      }
    }
    switch (t.epilogue) {
      case Epilogue::none:
        break;
      case Epilogue::bias:
      case Epilogue::bias_relu:
      case Epilogue::bias_leaky_relu:
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            V& value = sum[0][m][v];
            if (t.bias != nullptr) value += t.bias[m];
            if (t.epilogue == Epilogue::bias_relu) value = value < T(0) ? V{} : value;
            if (t.epilogue == Epilogue::bias_leaky_relu) value = value > T(0) ? value : value * t.slope;
          }
        break;
      case Epilogue::relu_backward:
      case Epilogue::leaky_relu_backward: {
        const T* saved = t.saved + column;
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m)
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            const V s = *reinterpret_cast<const V*>(saved + m * panel + v * lanes<T>);
            V& value = sum[0][m][v];
            // As torch: a NaN among the outputs lets relu's gradient through, and scales leaky_relu's.
            if (t.epilogue == Epilogue::relu_backward)
              value = s <= T(0) ? V{} : value;
            else
              value = s > T(0) ? value : value * t.slope;
          }
        break;
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      *reinterpret_cast<V*>(c + m * panel) = sum[0][m][0];
      *reinterpret_cast<V*>(c + m * panel + lanes<T>) = sum[0][m][1];
    }
  }
}

template <class T, Storage storage, class Rows>
struct TileTable;
template <class T, Storage storage, int... rows>
struct TileTable<T, storage, std::integer_sequence<int, rows...>> {
  static constexpr void (*entries[])(const TileTask<T>&) = {multiply_tile<T, rows + 1, storage>...};
};

template <class T, Storage storage>
void multiply(int rows, const TileTask<T>& task) {
  TileTable<T, storage, std::make_integer_sequence<int, tile_rows>>::entries[rows - 1](task);
}

// Tiles of nearly equal height.
struct Tiles {
  int64_t rows, count;

  explicit Tiles(int64_t rows, int most = tile_rows) : rows(rows), count((rows + most - 1) / most) {}
  int64_t begin(int64_t i) const { return i * rows / count; }
  int height(int64_t i) const { return int(begin(i + 1) - begin(i)); }
};
