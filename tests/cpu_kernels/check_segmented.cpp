#include "../../csrc/cpu/segmented.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::Segment;
using fastgan::SegmentKind;
using fastgan::cpu::Context;
using Table = std::vector<std::pair<int, SegmentKind>>;

// Every run of every row against its formula, forward, back, and the derivative of back. The passes back are given the
// forward pass's own output.
template <class T>
void check_runs(const Table& table, int64_t rows) {
  using C = fastgan::compute_t<T>;
  using Act = fastgan::Act<fastgan::Activation::tanh>;
  const fastgan::Arithmetic<T> arithmetic;
  const double tau = 0.5;
  std::vector<Segment> list;
  int columns = 0, gumbel = 0;
  for (const auto& [width, kind] : table) {
    list.push_back({columns, width, gumbel, kind});
    columns += width;
    if (kind == SegmentKind::gumbel_softmax) gumbel += width;
  }
  const std::string about = "runs of " + std::to_string(columns) + " columns and " + std::to_string(rows) + " rows";
  const fastgan::Segments segments{list.data(), int(list.size()), columns, gumbel, tau};
  const int64_t n = rows * columns;
  const auto x = random<T>(n, -3, 3), v = random<T>(n, -1, 1), c = random<T>(n, -1, 1);
  const auto noise = random<C>(rows * gumbel, -1, 3);
  std::vector<T> y(n), grad_input(n), by_v(n), by_y(n);
  fastgan::SegmentedPass<T> forward{}, backward{};
  forward.rows = rows, forward.input = x.data(), forward.noise = gumbel > 0 ? noise.data() : nullptr;
  forward.y = y.data();
  fastgan::cpu::segmented(Context(), segments, forward);
  backward.rows = rows, backward.output = y.data(), backward.grad_output = v.data();
  backward.grad_input = grad_input.data();
  fastgan::cpu::segmented(Context(), segments, backward);
  fastgan::SegmentedPass<T> second = backward;
  second.cotangent = c.data(), second.by_grad_output = by_v.data(), second.by_output = by_y.data();
  fastgan::cpu::segmented(Context(), segments, second);

  const Numbers X = numbers(x), V = numbers(v), K = numbers(c), N = numbers(noise), Y = numbers(y);
  Numbers value(n), by_x(n), by_gradient(n), by_output(n);
  for (int64_t row = 0; row < rows; ++row)
    for (const Segment& run : list) {
      const int64_t from = row * columns + run.begin, to = from + run.width;
      const Bounded factor = segments.factor(run);
      Numbers power(run.width);
      double largest = -INFINITY;
      for (int i = 0; i < run.width; ++i) {
        const bool draws = run.kind == SegmentKind::gumbel_softmax;
        power[i] = draws ? X[from + i] + N[row * gumbel + run.noise + i] : X[from + i];
        largest = std::max(largest, power[i].value);
      }
      Sum sum, sum_v, sum_c;
      for (int64_t i = from; i < to; ++i) {
        // Whichever is subtracted, it cancels; what rounding makes of the difference does not.
        power[i - from] = fastgan::exp_((power[i - from] - Bounded(largest, 0)) * factor);
        sum.add(power[i - from]), sum_v.add(Y[i] * V[i]), sum_c.add(Y[i] * K[i]);
      }
      const Bounded mean_v = sum_v.total(), mean_c = sum_c.total();
      for (int64_t i = from; i < to; ++i) {
        value[i] = X[i], by_x[i] = V[i], by_gradient[i] = K[i], by_output[i] = 0;
        if (run.kind == SegmentKind::tanh) {
          value[i] = fastgan::tanh_(X[i]);
          by_x[i] = fastgan::gradient<Act>(V[i], Y[i], Bounded());
          by_gradient[i] = fastgan::gradient<Act>(K[i], Y[i], Bounded());
          by_output[i] = fastgan::pointwise_by_output<Act>(Y[i], V[i], K[i]);
        } else if (fastgan::is_softmax(run.kind)) {
          value[i] = power[i - from] / sum.total();
          by_x[i] = fastgan::softmax_gradient(Y[i], V[i], mean_v, factor);
          by_gradient[i] = fastgan::softmax_gradient(Y[i], K[i], mean_c, factor);
          by_output[i] = fastgan::softmax_by_output(V[i], K[i], mean_v, mean_c, factor);
        }
        for (Numbers* all : {&value, &by_x, &by_gradient, &by_output}) (*all)[i] = fastgan::stored<T>((*all)[i]);
      }
    }
  expect(y, value, about);
  expect(grad_input, by_x, about + ", backward");
  expect(by_v, by_gradient, about + ", by the gradient");
  expect(by_y, by_output, about + ", by the output");
}

}  // namespace

void check_segmented() {
  using enum SegmentKind;
  for_each_type([](auto type) {
    using T = decltype(type);
    const Table some = {{1, SegmentKind::tanh}, {7, gumbel_softmax},      {64, softmax}, {65, gumbel_softmax},
                        {9, identity},          {100, SegmentKind::tanh}, {1, softmax},  {300, softmax}};
    check_runs<T>(some, 5);
    check_runs<T>(some, 33);
    check_runs<T>({{3, softmax}, {2, SegmentKind::tanh}}, 129);
  });
}

}  // namespace checks
