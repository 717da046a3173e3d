// A run of a row is an item. Eight lanes take one of up to 64 columns, so that the lanes of a warp have neighbouring
// runs; a block takes one of a wider run. Either way a column is read once and stays in a register, unless a run is
// wider than 2048.
#include <algorithm>
#include <vector>

#include "reduce.h"
#include "segmented.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = 256;
constexpr int group = 8;              // lanes of a narrow item
constexpr int held = 8;               // columns in registers, a lane
constexpr int narrow = group * held;  // columns of a narrow item, at most
constexpr int most_runs = 192;        // of a launch, whose parameters are 4 KiB at most

// The narrow runs, then the wide.
struct RunTable {
  int narrow, wide;
  int64_t columns, gumbel_columns;
  double tau;
  Segment runs[most_runs];
};
static_assert(sizeof(RunTable) + sizeof(SegmentedPass<double>) + sizeof(AskedLevels<double>) <= 4096,
              "the parameters of a launch");

template <class C>
__device__ __forceinline__ C larger(C a, C b) {
  return select(a < b, b, a);
}

// Some lanes of a warp, which may part ways with the others.
struct Lanes {
  static constexpr int size = group;
  int lane = threadIdx.x % group;
  unsigned mask = ((1u << group) - 1) << (threadIdx.x % warp_size / group * group);

  template <class C>
  __device__ __forceinline__ C sum(C value) const {
    for (int distance = group / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(mask, value, distance);
    return value;
  }
  template <class C>
  __device__ __forceinline__ C largest(C value) const {
    for (int distance = group / 2; distance > 0; distance /= 2)
      value = larger(value, __shfl_xor_sync(mask, value, distance));
    return value;
  }
};

struct WholeBlock {
  static constexpr int size = threads;
  int lane = threadIdx.x;

  template <class C>
  __device__ __forceinline__ C sum(C value) const {
    return combined(value, [](C a, C b) { return a + b; });
  }
  template <class C>
  __device__ __forceinline__ C largest(C value) const {
    return combined(value, [](C a, C b) { return larger(a, b); });
  }

 private:
  // Of all threads, for all of them, in a fixed order.
  template <class C, class F>
  __device__ __forceinline__ C combined(C value, const F& combine) const {
    constexpr int warps = threads / warp_size;
    FASTGAN_SHARED(C[warps], partial);
    for (int distance = warp_size / 2; distance > 0; distance /= 2)
      value = combine(value, __shfl_xor_sync(all_lanes, value, distance));
    if (lane % warp_size == 0) partial[lane / warp_size] = value;
    __syncthreads();
    value = partial[lane % warps];
    for (int distance = warps / 2; distance > 0; distance /= 2)
      value = combine(value, __shfl_xor_sync(all_lanes, value, distance));
    __syncthreads();  // partial may be used again
    return value;
  }
};

// Calls body(k, column) for the columns from `first` on that this lane holds.
template <class Team, class Body>
__device__ __forceinline__ void for_held(const Team& team, int first, int width, const Body& body) {
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int column = first + k * Team::size + team.lane;
    if (column < width) body(k, column);
  }
}

// Calls body(first) for each piece of a run that fits into the registers; `load` before that, where it is not the only
// one, whose columns are loaded already.
template <class Team, class Load, class Body>
__device__ __forceinline__ void for_pieces(int width, const Load& load, const Body& body) {
  constexpr int piece = Team::size * held;
  for (int first = 0; first < width; first += piece) {
    if (width > piece) load(first);
    body(first);
  }
}

template <class T, class Team>
__device__ __forceinline__ void softmax_forward(const Team& team, int width, compute_t<T> factor, const T* x,
                                                const compute_t<T>* noise, T* y) {
  using C = compute_t<T>;
  C v[held];
  const auto load_piece = [&](int first) {
    for_held(team, first, width,
             [&](int k, int column) { v[k] = load(x + column) + (noise == nullptr ? C(0) : noise[column]); });
  };
  load_piece(0);
  C most = C(-INFINITY), sum = 0;
  for_pieces<Team>(width, load_piece,
                   [&](int first) { for_held(team, first, width, [&](int k, int) { most = larger(most, v[k]); }); });
  most = team.largest(most);
  const auto load_powers = [&](int first) {
    load_piece(first);
    for_held(team, first, width, [&](int k, int) { v[k] = exp_((v[k] - most) * factor); });
  };
  if (width <= Team::size * held) for_held(team, 0, width, [&](int k, int) { v[k] = exp_((v[k] - most) * factor); });
  for_pieces<Team>(width, load_powers,
                   [&](int first) { for_held(team, first, width, [&](int k, int) { sum += v[k]; }); });
  const C inverse = C(1) / team.sum(sum);
  for_pieces<Team>(width, load_powers, [&](int first) {
    for_held(team, first, width, [&](int k, int column) { store(y + column, v[k] * inverse); });
  });
}

template <class T, class Team>
__device__ __forceinline__ void softmax_backward(const Team& team, int width, compute_t<T> factor, const T* output,
                                                 const T* grad_output, T* grad_input) {
  using C = compute_t<T>;
  C y[held], v[held];
  const auto load_piece = [&](int first) {
    for_held(team, first, width,
             [&](int k, int column) { y[k] = load(output + column), v[k] = load(grad_output + column); });
  };
  load_piece(0);
  C mean = 0;
  for_pieces<Team>(width, load_piece,
                   [&](int first) { for_held(team, first, width, [&](int k, int) { mean += y[k] * v[k]; }); });
  mean = team.sum(mean);
  for_pieces<Team>(width, load_piece, [&](int first) {
    for_held(team, first, width,
             [&](int k, int column) { store(grad_input + column, softmax_gradient(y[k], v[k], mean, factor)); });
  });
}

template <class T, class Team>
__device__ __forceinline__ void softmax_double_backward(const Team& team, int width, compute_t<T> factor,
                                                        const T* output, const T* grad_output, const T* cotangent,
                                                        T* by_grad_output, T* by_output) {
  using C = compute_t<T>;
  C y[held], v[held], c[held];
  const auto load_piece = [&](int first) {
    for_held(team, first, width, [&](int k, int column) {
      y[k] = load(output + column), v[k] = load(grad_output + column), c[k] = load(cotangent + column);
    });
  };
  load_piece(0);
  C mean_v = 0, mean_c = 0;
  for_pieces<Team>(width, load_piece, [&](int first) {
    for_held(team, first, width, [&](int k, int) { mean_v += y[k] * v[k], mean_c += y[k] * c[k]; });
  });
  mean_v = team.sum(mean_v);
  mean_c = team.sum(mean_c);
  for_pieces<Team>(width, load_piece, [&](int first) {
    for_held(team, first, width, [&](int k, int column) {
      store(by_grad_output + column, softmax_gradient(y[k], c[k], mean_c, factor));
      store(by_output + column, softmax_by_output(v[k], c[k], mean_v, mean_c, factor));
    });
  });
}

// A run that is not a softmax.
template <class A, class T, class Team>
__device__ __forceinline__ void pointwise(const Team& team, int width, const SegmentedPass<T>& pass, int64_t place) {
  using C = compute_t<T>;
  for (int column = team.lane; column < width; column += Team::size) {
    const int64_t i = place + column;
    if (pass.input != nullptr) {
      store(pass.y + i, A::value(load(pass.input + i), C(0)));
      continue;
    }
    const C y = load(pass.output + i), v = load(pass.grad_output + i);
    if (pass.cotangent == nullptr) {
      store(pass.grad_input + i, gradient<A>(v, y, C(0)));
      continue;
    }
    const C c = load(pass.cotangent + i);
    store(pass.by_grad_output + i, gradient<A>(c, y, C(0)));
    store(pass.by_output + i, pointwise_by_output<A>(y, v, c));
  }
}

enum class Way { forward, backward, double_backward };

template <Way way, class T, class Team>
__device__ __forceinline__ void run_item(const Team& team, const RunTable& table, const Segment& run,
                                         const SegmentedPass<T>& pass, int64_t row) {
  const int64_t place = row * table.columns + run.begin;
  const int width = run.width;
  if (run.kind == SegmentKind::tanh) return pointwise<Act<Activation::tanh>>(team, width, pass, place);
  if (run.kind == SegmentKind::identity) return pointwise<Act<Activation::identity>>(team, width, pass, place);
  const bool draws = run.kind == SegmentKind::gumbel_softmax;
  const auto factor = static_cast<compute_t<T>>(draws ? 1 / table.tau : 1);
  if constexpr (way == Way::forward)
    softmax_forward<T>(team, width, factor, pass.input + place,
                       draws ? pass.noise + row * table.gumbel_columns + run.noise : nullptr, pass.y + place);
  else if constexpr (way == Way::backward)
    softmax_backward<T>(team, width, factor, pass.output + place, pass.grad_output + place, pass.grad_input + place);
  else
    softmax_double_backward<T>(team, width, factor, pass.output + place, pass.grad_output + place,
                               pass.cotangent + place, pass.by_grad_output + place, pass.by_output + place);
}

// softmax(x) less one at the level.
template <class T, class Team>
__device__ __forceinline__ void add_cross_entropy(const Team& team, int width, int level, T scale, const T* x,
                                                  T* grad) {
  T v[held];
  const auto load_piece = [&](int first) {
    for_held(team, first, width, [&](int k, int column) { v[k] = x[column]; });
  };
  load_piece(0);
  T most = T(-INFINITY), sum = 0;
  for_pieces<Team>(width, load_piece,
                   [&](int first) { for_held(team, first, width, [&](int k, int) { most = larger(most, v[k]); }); });
  most = team.largest(most);
  // As torch.logsumexp: of an infinite logit the others have no share, and its own is NaN.
  most = select(abs_(most) == T(INFINITY), T(0), most);
  for_pieces<Team>(width, load_piece,
                   [&](int first) { for_held(team, first, width, [&](int k, int) { sum += exp_(v[k] - most); }); });
  const T inverse = T(1) / team.sum(sum);
  for_pieces<Team>(width, load_piece, [&](int first) {
    for_held(team, first, width, [&](int k, int column) {
      grad[column] += scale * (exp_(v[k] - most) * inverse - select(column == level, T(1), T(0)));
    });
  });
}

// Calls item(team, run, row) of the items of this block. Those of wide runs come first: they take longest.
template <class Item>
__device__ __forceinline__ void for_item(const RunTable& table, int64_t rows, const Item& item) {
  const int64_t wide = rows * table.wide;
  if (blockIdx.x < wide) {
    const int64_t row = blockIdx.x / table.wide;
    return item(WholeBlock{}, table.runs[table.narrow + int(blockIdx.x - row * table.wide)], row);
  }
  const int64_t i = (blockIdx.x - wide) * (threads / group) + threadIdx.x / group;
  if (i >= rows * table.narrow) return;
  const int64_t row = i / table.narrow;
  item(Lanes{}, table.runs[i - row * table.narrow], row);
}

template <Way way, class T>
__global__ void __launch_bounds__(threads, sizeof(T) == 8 ? 2 : 4)
    segmented_kernel(const __grid_constant__ RunTable table, const __grid_constant__ SegmentedPass<T> pass) {
  for_item(table, pass.rows,
           [&](const auto& team, const Segment& run, int64_t row) { run_item<way>(team, table, run, pass, row); });
}

template <class T>
__global__ void __launch_bounds__(threads, sizeof(T) == 8 ? 2 : 4)
    segmented_asked_kernel(const __grid_constant__ RunTable table, const __grid_constant__ SegmentedPass<T> pass,
                           const __grid_constant__ AskedLevels<T> asked) {
  for_item(table, pass.rows, [&](const auto& team, const Segment& run, int64_t row) {
    run_item<Way::backward>(team, table, run, pass, row);
    if (run.kind != SegmentKind::gumbel_softmax || run.noise < asked.from) return;
    const int64_t level = asked.level[row] + asked.from - run.noise;
    if (level < 0 || level >= run.width) return;
    const int64_t place = row * table.columns + run.begin;
    add_cross_entropy(team, run.width, int(level), asked.scale, asked.input + place, pass.grad_input + place);
  });
}

// The blocks of a launch.
Grid grid_of(const RunTable& table, int64_t rows) {
  constexpr int items = threads / group;
  const int64_t blocks = rows * table.wide + (rows * table.narrow + items - 1) / items;
  return Grid{dim3(static_cast<unsigned>(blocks)), dim3(threads)};
}

// Calls f(table) of all runs, as many at a time as a launch takes.
template <class F>
void for_tables(const Segments& segments, const F& f) {
  for (int first = 0; first < segments.count; first += most_runs) {
    const Segment *const begin = segments.list + first, *const end =
                                                            begin + std::min(segments.count - first, most_runs);
    RunTable table;
    table.columns = segments.columns, table.gumbel_columns = segments.gumbel_columns, table.tau = segments.tau;
    const auto is_narrow = [](const Segment& run) { return run.width <= narrow; };
    Segment* const wide = std::copy_if(begin, end, table.runs, is_narrow);
    std::copy_if(begin, end, wide, [&](const Segment& run) { return !is_narrow(run); });
    table.narrow = static_cast<int>(wide - table.runs);
    table.wide = static_cast<int>(end - begin) - table.narrow;
    f(table);
  }
}

}  // namespace

template <class T>
void segmented(const Context& context, const Segments& segments, const SegmentedPass<T>& pass) {
  if (pass.rows == 0) return;
  for_tables(segments, [&](const RunTable& table) {
    const Grid grid = grid_of(table, pass.rows);
    if (pass.input != nullptr)
      launch(context, "segmented", segmented_kernel<Way::forward, T>, grid, table, pass);
    else if (pass.cotangent == nullptr)
      launch(context, "segmented", segmented_kernel<Way::backward, T>, grid, table, pass);
    else
      launch(context, "segmented", segmented_kernel<Way::double_backward, T>, grid, table, pass);
  });
}

template <class T>
void segmented_backward(const Context& context, const Segments& segments, const SegmentedPass<T>& pass,
                        const AskedLevels<T>& asked) {
  for_tables(segments, [&](const RunTable& table) {
    launch(context, "segmented_asked", segmented_asked_kernel<T>, grid_of(table, pass.rows), table, pass, asked);
  });
}

#define FASTGAN_INSTANTIATE(T) \
  template void segmented_backward<T>(const Context&, const Segments&, const SegmentedPass<T>&, const AskedLevels<T>&);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

#define FASTGAN_INSTANTIATE(T) template void segmented<T>(const Context&, const Segments&, const SegmentedPass<T>&);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
