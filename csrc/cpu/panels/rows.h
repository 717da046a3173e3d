// Matrices into panels and back. Included once for each instruction set, inside its namespace, after layers.h.

// Columns [begin, end) of n rows, each `step` rows after the one before, into the same rows of a panel.
template <class T>
void load_panel(int64_t n, const StridedRows<T>& rows, int64_t first, int64_t step, int64_t begin, int64_t end,
                T* out) {
  const T* in = rows.data + first * rows.row_stride;
  const int64_t stride = step * rows.row_stride;
  clear_padding(end - begin, n, out + begin * panel);
  if (rows.col_stride == 1) return transpose(n, end - begin, in + begin, stride, out + begin * panel, panel);
  for (int64_t c = begin; c < end; ++c)
    for (int64_t r = 0; r < n; ++r) out[c * panel + r] = in[r * stride + c * rows.col_stride];
}

// A batch into panels: rows of any strides. An input is made of `pac` samples, each `member_width` features wide.
template <class T>
void load_rows(const Pass& pass, const StridedRows<T>& rows, const Panels<T>& to, int64_t pac = 1,
               int64_t member_width = 0) {
  const int64_t begin = pass.worker.from(rows.width), end = pass.worker.to(rows.width);
  pass.for_members(pac, [&](int64_t p, int64_t n, int64_t first, int64_t step, int64_t member) {
    load_panel(n, rows, first, step, begin, end, to.at(p) + member * member_width * panel);
  });
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
