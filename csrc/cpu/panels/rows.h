// Matrices into panels and back. Included once for each instruction set, inside its namespace, after layers.h.

// A batch into panels: rows of any strides.
template <class T>
void load_rows(const Worker& worker, const StridedRows<T>& rows, int64_t batch, const Panels<T>& to) {
  const int64_t begin = worker.from(rows.width), end = worker.to(rows.width);
  for (int64_t p = worker.begin; p < worker.end; ++p) {
    const int64_t n = samples_in(p, batch);
    T* out = to.at(p);
    const T* in = rows.data + p * panel * rows.row_stride;
    clear_padding(end - begin, n, out + begin * panel);
    if (rows.col_stride == 1) {
      transpose(n, end - begin, in + begin, rows.row_stride, out + begin * panel, panel);
      continue;
    }
    for (int64_t c = begin; c < end; ++c)
      for (int64_t r = 0; r < n; ++r) out[c * panel + r] = in[r * rows.row_stride + c * rows.col_stride];
  }
}

// What the worker has computed of a layer, into rows.
template <class T>
void store_rows(const Worker& worker, int64_t width, int64_t first_sample, int64_t samples, const Panels<T>& from,
                T* rows) {
  const Tiles tiles(width);
  const int64_t begin = tiles.begin(worker.from(tiles.count)), end = tiles.begin(worker.to(tiles.count));
  for (int64_t p = worker.begin; p < worker.end; ++p)
    transpose(end - begin, samples_in(p, samples), from.at(p) + begin * panel, panel,
              rows + (first_sample + p * panel) * width + begin, width);
}
