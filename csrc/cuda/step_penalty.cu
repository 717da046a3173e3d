#include <algorithm>

#include "../core/penalties.h"
#include "reduce.h"
#include "step_penalty.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = 256;

// A row is a warp's, or, where it is long, a block's: each column more of a lane is another round trip to memory. Of
// 784 columns and 128 rows, a warp each is modelled at 12.5 us on an H100 (docs/inside/model.md), a block each at 8.7.
constexpr int64_t longest_of_warp = 128;

// A barrier of the threads of a row.
template <int of_row>
__device__ __forceinline__ void meet() {
  if constexpr (of_row == warp_size)
    __syncwarp();
  else
    __syncthreads();
}

// The sum over the threads of a row, for all of them.
template <int of_row, class C>
__device__ __forceinline__ C row_sum(C value) {
  if constexpr (of_row == warp_size) return __shfl_sync(all_lanes, warp_sum(value), 0);
  FASTGAN_SHARED(C, total);
  value = block_sum<threads>(value);
  if (threadIdx.x == 0) total = value;
  __syncthreads();
  value = total;
  __syncthreads();  // the place may be used again
  return value;
}

template <class T, int of_row>
__global__ void __launch_bounds__(threads, 2)
    penalty_start_kernel(const __grid_constant__ PenaltyStart<T> a, double* partial, unsigned* counter) {
  constexpr int at_a_time = threads / of_row;
  const int lane = int(threadIdx.x) % of_row;
  // Whether a column is of a sample's data, not of its label.
  const bool all_count = a.data == a.sample, one_sample = a.sample == a.width;
  const auto is_data = [&](int64_t i) { return all_count || (one_sample ? i : i % a.sample) < a.data; };
  double total = 0;
  for (int64_t row = int64_t{blockIdx.x} * at_a_time + threadIdx.x / of_row; row < a.parts.rows();
       row += int64_t{gridDim.x} * at_a_time) {
    const int part = a.parts.of_row(row);
    T* const g = a.gradient + row * a.width;
    T squares = 0;
    for (int64_t i = lane; i < a.width; i += of_row)
      if (is_data(i)) squares += g[i] * g[i];
    squares = row_sum<of_row>(squares);
    double slope = 1, bend = 0;
    if (a.penalties.of_probability) {
      const Sigmoids<double> s = sigmoids(double(a.logits[row]));
      slope = s.positive * s.negative, bend = slope * (s.negative - s.positive);
    }
    const bool counts = a.weight[part] != 0;
    const double each = a.weight[part] / double(a.parts.rows_of(part));
    const PenaltyAt of = penalty_at(a.penalties, a.first + part, double(squares), slope, bend);
    const T scale = T(each * of.factor), by_logit = counts ? T(each * of.by_logit) : T(0);
    const T row_weight = a.row_weight == nullptr ? T(0) : a.row_weight[row] + by_logit;
    for (int64_t i = lane; i < a.width; i += of_row) {
      const T t = counts && is_data(i) ? scale * g[i] : T(0);
      g[i] = t;
      if (a.mixed != nullptr) a.mixed[row * a.width + i] = row_weight * a.mixed[row * a.width + i] + t;
    }
    meet<of_row>();  // all have read the row's weight
    if (lane > 0) continue;
    if (counts) total += each * of.value;
    if (!a.penalties.of_probability) continue;
    if (a.row_weight != nullptr) a.row_weight[row] = row_weight;
    if (a.grad_z != nullptr)
      with_activation(a.activation.activation, [&](auto act) {
        a.grad_z[row] += gradient<decltype(act)>(by_logit, a.saved[row], T(a.activation.negative_slope));
      });
  }
  total = block_sum<threads>(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
  if (!is_last_block(counter, gridDim.x) || threadIdx.x > 0) return;
  total = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) total += partial[block];
  const bool is_odd = a.odd_label != nullptr && *a.odd_label != 0;
  if (is_odd && a.is_last_of_step) *a.odd_label = 0;
  *a.penalty = is_odd ? T(NAN) : T(total);
}

template <class T, int of_row>
void run(const Context& context, const PenaltyStart<T>& a) {
  constexpr int at_a_time = threads / of_row;
  // The last block adds the sums of all, one by one: few.
  const int64_t blocks = std::clamp<int64_t>((a.parts.rows() + at_a_time - 1) / at_a_time, 1,
                                             std::min<int64_t>(256, int64_t{4} * context.multiprocessors));
  launch(context, "penalty_start", penalty_start_kernel<T, of_row>,
         Grid{dim3(static_cast<unsigned>(blocks)), dim3(threads)}, a,
         static_cast<double*>(context.scratch(blocks * sizeof(double))), context.counters());
}

}  // namespace

template <class T>
void penalty_start(const Context& context, const PenaltyStart<T>& a) {
  if (a.width <= longest_of_warp) return run<T, warp_size>(context, a);
  run<T, threads>(context, a);
}

template void penalty_start<float>(const Context&, const PenaltyStart<float>&);
template void penalty_start<double>(const Context&, const PenaltyStart<double>&);

}  // namespace fastgan::cuda
