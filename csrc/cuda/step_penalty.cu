#include <algorithm>

#include "../core/logits_loss.h"
#include "reduce.h"
#include "step_penalty.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = 256;

// A row is a warp's, or, where it is long, a block's.
constexpr int64_t longest_of_warp = 1024;

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

// Of a row, with g the gradient of D's output by its input: the penalty, and what its gradients by g and by the logit
// are. p1 and p2: the first two derivatives of what the penalty is of by the logit.
struct RowPenalty {
  double value, scale, by_logit;

  __device__ RowPenalty(double weight, bool is_of_norm, double center, double rows, double squares, double p1,
                        double p2) {
    const double each = weight / rows;
    if (!is_of_norm) {
      value = each / 2 * p1 * p1 * squares;
      scale = each * p1 * p1;
      by_logit = each * p1 * p2 * squares;
      return;
    }
    const double length = sqrt(squares), norm = p1 * length, slope = 2 * each * (norm - center);
    value = each * (norm - center) * (norm - center);
    // As torch has it, the norm has a gradient of zero where it is zero.
    scale = norm == 0 ? 0 : slope * p1 / length;
    by_logit = norm == 0 ? 0 : slope * p2 * length;
  }
};

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
    double p1 = 1, p2 = 0;
    if (a.of_probability) {
      const Sigmoids<double> s = sigmoids(double(a.logits[row]));
      p1 = s.positive * s.negative, p2 = p1 * (s.negative - s.positive);
    }
    const bool counts = a.weight[part] != 0;
    const RowPenalty of(a.weight[part], a.is_of_norm[part], a.center, double(a.parts.rows_of(part)), double(squares),
                        p1, p2);
    const T scale = T(of.scale), by_logit = counts ? T(of.by_logit) : T(0);
    const T row_weight = a.row_weight == nullptr ? T(0) : a.row_weight[row] + by_logit;
    for (int64_t i = lane; i < a.width; i += of_row) {
      const T t = counts && is_data(i) ? scale * g[i] : T(0);
      g[i] = t;
      if (a.mixed != nullptr) a.mixed[row * a.width + i] = row_weight * a.mixed[row * a.width + i] + t;
    }
    meet<of_row>();  // all have read the row's weight
    if (lane > 0) continue;
    if (counts) total += of.value;
    if (!a.of_probability) continue;
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
