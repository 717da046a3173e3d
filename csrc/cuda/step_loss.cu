// The loss of a step, of logits that are there already, or, in one launch with it, D's last layer before it and the
// gradient by z of the layer below.
#include "../core/logits_loss.h"
#include "adam_parameter.h"
#include "elementwise.h"
#include "reduce.h"
#include "step_parts.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;
constexpr int head_threads = 128, head_rows = head_threads / warp_size;  // a row a warp

// Rows are few: the activation is chosen anew for each.
template <class T>
__device__ __forceinline__ T through(ActivationArguments activation, T g, T saved) {
  T value = 0;
  with_activation(activation.activation,
                  [&](auto act) { value = gradient<decltype(act)>(g, saved, T(activation.negative_slope)); });
  return value;
}

// What a block has added up of one part.
struct LossSums {
  double loss = 0, score = 0;
};

// The loss of the rows of one part: what all of them have in common.
template <class T>
class PartLoss {
 public:
  __device__ __forceinline__ PartLoss(const StepLoss<T>& a, int part)
      : a_(a),
        part_(part),
        is_paired_(a.pairs[0] != 0),
        is_judged_(part < a.judged),
        is_unit_(part >= a.first_unit && part < a.end_unit),
        of_(a.part[is_paired_ || !is_judged_ ? 0 : part]),
        scale_(T((is_paired_ && is_judged_ ? a.pairs[part] : 1) * of_.sign / double(a.parts.rows_of(part)))) {}

  // Whether the loss is of the logit's partner too, which is the same row of the other part.
  __device__ __forceinline__ bool takes_pairs() const { return is_paired_ && is_judged_; }
  __device__ __forceinline__ int64_t partner_of(int64_t row) const { return a_.parts.begin[1 - part_] + row; }

  // Of a row of the part: adds to the sums, and writes and returns the gradient by z that the chain starts with.
  __device__ __forceinline__ T at(int64_t row, T logit, T partner, T saved, LossSums& sums) const {
    const int64_t place = a_.parts.begin[part_] + row;
    T c = 0;
    if (is_judged_) {
      const T x = is_paired_ ? T(a_.pairs[part_]) * logit + T(a_.pairs[1 - part_]) * partner : logit;
      LossAndGradient<T> both{};
      with_loss_term(of_.term, [&](auto term) { both = decltype(term)::at(x, T(of_.target)); });
      sums.loss += double(both.loss);
      sums.score += double(a_.scores_probability ? sigmoid_(logit) : logit);
      c = scale_ * both.gradient;
    }
    const bool is_mixed = is_unit_ && a_.unit == nullptr;
    const T start = through(a_.activation, is_mixed ? T(1) : c, saved);
    a_.grad_z[place] = start;
    if (a_.row_weight != nullptr) a_.row_weight[place] = is_mixed ? c : T(1);
    if (is_unit_ && !is_mixed) {
      const int64_t own = place - a_.parts.begin[a_.first_unit];
      a_.unit[own] = through(a_.activation, T(1), saved);
      a_.row_weight[a_.parts.rows() + own] = T(0);
    }
    return start;
  }

 private:
  const StepLoss<T>& a_;
  const int part_;
  const bool is_paired_, is_judged_, is_unit_;
  const LossPart& of_;
  const T scale_;
};

// Whether this block is of no part, but beside them; the first of those prepares the updates that come after.
template <int block_threads, class T>
__device__ __forceinline__ bool is_beside_parts(const StepLoss<T>& a) {
  if (int(blockIdx.y) < a.parts.count) return false;
  if (blockIdx.x == 0) prepare_adam<block_threads>(a.adam);
  return true;
}

// What the step reports, of the sums of all blocks, by the last of them to finish: blocks.x of each part.
template <int block_threads, class T>
__device__ __forceinline__ void report(const StepLoss<T>& a, const LossSums& own, double* partial, unsigned* counter) {
  const double loss = block_sum<block_threads>(own.loss), score = block_sum<block_threads>(own.score);
  double* const of_block = partial + 2 * (blockIdx.y * gridDim.x + blockIdx.x);
  if (threadIdx.x == 0) of_block[0] = loss, of_block[1] = score;
  if (!is_last_block(counter, gridDim.x * unsigned(a.parts.count))) return;
  const bool is_paired = a.pairs[0] != 0;
  const bool is_odd = a.odd_label != nullptr && *a.odd_label != 0;
  T total = 0;
  for (int part = 0; part < a.judged; ++part) {
    LossSums all;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += block_threads) {
      const double* sums = partial + 2 * (part * gridDim.x + block);
      all.loss += sums[0], all.score += sums[1];
    }
    all.loss = block_sum<block_threads>(all.loss), all.score = block_sum<block_threads>(all.score);
    if (threadIdx.x > 0) continue;
    const double rows = double(a.parts.rows_of(part));
    if (!is_paired || part == 0) total += T(a.part[part].sign * all.loss / rows);  // both have summed the loss of pairs
    if (a.score[part] != nullptr) *a.score[part] = is_odd ? T(NAN) : T(all.score / rows);
  }
  if (threadIdx.x > 0) return;
  if (is_odd && a.is_last_of_step) *a.odd_label = 0;
  *a.loss = is_odd ? T(NAN) : total;
  if (a.penalty != nullptr) *a.penalty = is_odd ? T(NAN) : T(0);
}

template <class T>
__global__ void __launch_bounds__(threads)
    step_loss_kernel(const __grid_constant__ StepLoss<T> a, double* partial, unsigned* counter) {
  if (is_beside_parts<threads>(a)) return;
  const int part = int(blockIdx.y);
  const PartLoss<T> loss(a, part);
  const T* const logits = a.logits + a.parts.begin[part];
  LossSums sums;
  for_vectors<1>(a.parts.rows_of(part), [&](int64_t i) {
    loss.at(i, logits[i], loss.takes_pairs() ? a.logits[loss.partner_of(i)] : T(0), a.saved[a.parts.begin[part] + i],
            sums);
  });
  report<threads>(a, sums, partial, counter);
}

// A row times the weight, in every lane of the warp.
template <class T>
__device__ __forceinline__ T row_product(const T* x, const T* weight, int64_t in, bool aligned, int lane) {
  constexpr int length = vector_length<T>;
  T sum = 0;
#pragma unroll 2
  for (int64_t i = lane * length; i < in; i += warp_size * length) {
    T a[length], b[length];
    load_elements(x, i, in, aligned, a);
    load_elements(weight, i, in, aligned, b);
#pragma unroll
    for (int k = 0; k < length; ++k) sum += a[k] * b[k];
  }
  return __shfl_sync(all_lanes, warp_sum(sum), 0);
}

// A warp a row: its logit, the loss of it, and the gradient before the layer, which no other row has a part in.
template <class T>
__global__ void __launch_bounds__(head_threads)
    step_head_kernel(const __grid_constant__ StepHead<T> a, bool aligned, double* partial, unsigned* counter) {
  wait_for_launch_before();
  if (is_beside_parts<head_threads>(a.loss)) return;
  constexpr int length = vector_length<T>;
  const int part = int(blockIdx.y), lane = threadIdx.x % warp_size;
  const PartLoss<T> loss(a.loss, part);
  const bool goes_on = part >= a.first && part < a.end;
  const ActivationArguments own = a.loss.activation;
  const T bias = a.bias != nullptr ? *a.bias : T(0);
  LossSums sums;
  for (int64_t row = int64_t{blockIdx.x} * head_rows + threadIdx.x / warp_size; row < a.loss.parts.rows_of(part);
       row += int64_t{gridDim.x} * head_rows) {
    const int64_t place = a.loss.parts.begin[part] + row;
    const T z = row_product(a.x + place * a.in, a.weight, a.in, aligned, lane) + bias;
    T partner = 0;
    if (loss.takes_pairs())
      partner = row_product(a.x + loss.partner_of(row) * a.in, a.weight, a.in, aligned, lane) + bias;
    T start = 0;
    if (lane == 0) {
      T y = 0;
      with_activation(own.activation, [&](auto act) {
        y = decltype(act)::value(z, T(own.negative_slope));
        partner = decltype(act)::value(partner, T(own.negative_slope));
      });
      if (a.z != nullptr) a.z[place] = z;
      a.y[place] = y;
      start = loss.at(row, y, partner, a.z != nullptr ? z : y, sums);
    }
    if (!goes_on) continue;
    start = __shfl_sync(all_lanes, start, 0);
    const T* const saved = a.saved_before + place * a.in;
    T* const grad = a.grad_before + place * a.in;
    with_activation(a.activation_before.activation, [&](auto act) {
      using A = decltype(act);
      const T slope = T(a.activation_before.negative_slope);
#pragma unroll 2
      for (int64_t i = lane * length; i < a.in; i += warp_size * length) {
        T w[length], s[length];
        load_elements(a.weight, i, a.in, aligned, w);
        load_elements(saved, i, a.in, aligned, s);
#pragma unroll
        for (int k = 0; k < length; ++k) w[k] = gradient<A>(start * w[k], s[k], slope);
        store_elements(grad, i, a.in, aligned, w);
      }
    });
  }
  let_next_launch_begin();
  report<head_threads>(a.loss, sums, partial, counter);
}

int64_t most_rows(const Parts& parts) {
  int64_t most = 0;
  for (int part = 0; part < parts.count; ++part) most = std::max(most, parts.rows_of(part));
  return most;
}

// So many blocks for each part, and those beside them where there is something to prepare.
template <class T>
Grid grid_of(const StepLoss<T>& a, unsigned across, int block_threads) {
  const unsigned beside = a.adam.count > 0 ? 1 : 0;
  return {dim3(across, static_cast<unsigned>(a.parts.count) + beside), dim3(static_cast<unsigned>(block_threads))};
}

double* partial_sums(const Context& context, const Grid& grid) {
  return static_cast<double*>(context.scratch(2 * sizeof(double) * grid.blocks.x * grid.blocks.y));
}

}  // namespace

template <class T>
void step_loss(const Context& context, const StepLoss<T>& a) {
  const unsigned across = static_cast<unsigned>(std::clamp<int64_t>(most_rows(a.parts) / (4 * threads), 1, 64));
  const Grid grid = grid_of(a, across, threads);
  launch(context, "step_loss", step_loss_kernel<T>, grid, a, partial_sums(context, grid), context.counters());
}

template <class T>
void step_head(const Context& context, const StepHead<T>& a) {
  const int64_t blocks = (most_rows(a.loss.parts) + head_rows - 1) / head_rows;
  const unsigned across = static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, int64_t{4} * context.multiprocessors));
  Grid grid = grid_of(a.loss, across, head_threads);
  grid.overlaps = cluster_limit(context, "step_head", step_head_kernel<T>) > 1;
  const bool aligned = a.in % vector_length<T> == 0 && all_aligned(a.x, a.weight, a.saved_before, a.grad_before);
  launch(context, "step_head", step_head_kernel<T>, grid, a, aligned, partial_sums(context, grid), context.counters());
}

#define FASTGAN_INSTANTIATE(T)                                    \
  template void step_loss<T>(const Context&, const StepLoss<T>&); \
  template void step_head<T>(const Context&, const StepHead<T>&);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
