#include "../../csrc/cuda/segmented.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::Segment;
using fastgan::SegmentKind;

// Every run of every row against its formula, forward, back, and the derivative of back.
template <class T>
void check_runs(const std::vector<std::pair<int, SegmentKind>>& table, int64_t rows, int offset) {
  using C = fastgan::compute_t<T>;
  const Context context;
  const double tau = 0.5;
  std::vector<Segment> list;
  int columns = 0, gumbel = 0;
  for (const auto& [width, kind] : table) {
    list.push_back({columns, width, gumbel, kind});
    columns += width;
    if (kind == SegmentKind::gumbel_softmax) gumbel += width;
  }
  const std::string about = std::string(name_of<T>()) + " runs of " + std::to_string(columns) + " columns and " +
                            std::to_string(rows) + " rows";
  const fastgan::Segments segments{list.data(), static_cast<int>(list.size()), columns, gumbel, tau};
  const int64_t n = rows * columns;
  const auto x = random<T>(n, -3, 3, offset), v = random<T>(n, -1, 1), c = random<T>(n, -1, 1, offset);
  const auto noise = random<C>(rows * gumbel, -1, 3);
  Buffer<T> y(n), grad_input(n, offset), by_v(n), by_y(n, offset);
  fastgan::SegmentedPass<T> forward{}, backward{};
  forward.rows = rows, forward.input = x.data(), forward.noise = gumbel > 0 ? noise.data() : nullptr;
  forward.y = y.data();
  fastgan::cuda::segmented(context, segments, forward);
  backward.rows = rows, backward.output = y.data(), backward.grad_output = v.data();
  backward.grad_input = grad_input.data();
  fastgan::cuda::segmented(context, segments, backward);
  fastgan::SegmentedPass<T> second = backward;
  second.cotangent = c.data(), second.by_grad_output = by_v.data(), second.by_output = by_y.data();
  fastgan::cuda::segmented(context, segments, second);
  for (int64_t row = 0; row < rows; ++row) {
    for (const Segment& run : list) {
      const int64_t from = row * columns + run.begin;
      const bool draws = run.kind == SegmentKind::gumbel_softmax;
      const double factor = draws ? 1 / tau : 1;
      const auto logit = [&](int i) {
        return factor * (x[from + i] + (draws ? noise[row * gumbel + run.noise + i] : 0));
      };
      double sum = 0, mean_v = 0, mean_c = 0;
      for (int i = 0; i < run.width; ++i) {
        sum += std::exp(logit(i));
        mean_v += y[from + i] * v[from + i];
        mean_c += y[from + i] * c[from + i];
      }
      for (int i = 0; i < run.width; ++i) {
        const int64_t at = from + i;
        const double of = y[at];  // the derivatives are functions of what was stored
        double value = x[at], by_x = v[at], by_gradient = c[at], by_output = 0;
        if (run.kind == SegmentKind::tanh) {
          value = std::tanh(x[at]);
          by_x *= 1 - of * of, by_gradient *= 1 - of * of;
          by_output = -2 * of * v[at] * c[at];
        } else if (run.kind != SegmentKind::identity) {
          value = std::exp(logit(i)) / sum;
          by_x = factor * of * (v[at] - mean_v), by_gradient = factor * of * (c[at] - mean_c);
          by_output = factor * ((c[at] - mean_c) * v[at] - mean_v * c[at]);
        }
        expect_close(of, value, 3, tolerance<T>, about);
        expect_close(grad_input[at], by_x, 4, tolerance<T>, about + " backward");
        expect_close(by_v[at], by_gradient, 4, tolerance<T>, about + " by the gradient");
        expect_close(by_y[at], by_output, 8, tolerance<T>, about + " by the output");
      }
    }
  }
}

// The derivative of each row's cross-entropy, on top of the backward pass; every third row is asked for nothing.
template <class T>
void check_asked(const std::vector<std::pair<int, SegmentKind>>& table, int64_t rows, int first_asked, int offset) {
  const Context context;
  std::vector<Segment> list;
  int columns = 0, gumbel = 0, from = 0;
  for (const auto& [width, kind] : table) {
    if (int(list.size()) == first_asked) from = gumbel;
    list.push_back({columns, width, gumbel, kind});
    columns += width;
    if (kind == SegmentKind::gumbel_softmax) gumbel += width;
  }
  const std::string about = std::string(name_of<T>()) + " levels of " + std::to_string(columns) + " columns";
  const fastgan::Segments segments{list.data(), static_cast<int>(list.size()), columns, gumbel, 0.5};
  const int64_t n = rows * columns;
  const auto x = random<T>(n, -3, 3, offset), y = random<T>(n, 0, 1), v = random<T>(n, -1, 1, offset);
  Buffer<T> without(n, offset), with(n, offset);
  Buffer<int64_t> level(rows);
  for (int64_t row = 0; row < rows; ++row)
    level.data()[row] = row % 3 == 2 ? (row % 2 == 0 ? -1 : gumbel - from) : row * 7 % std::max(1, gumbel - from);
  fastgan::SegmentedPass<T> pass{};
  pass.rows = rows, pass.output = y.data(), pass.grad_output = v.data(), pass.grad_input = without.data();
  fastgan::cuda::segmented(context, segments, pass);
  pass.grad_input = with.data();
  const double scale = 0.25;
  fastgan::cuda::segmented_backward(context, segments, pass,
                                    fastgan::cuda::AskedLevels<T>{level.data(), from, T(scale), x.data()});
  for (int64_t row = 0; row < rows; ++row)
    for (const Segment& run : list) {
      const int64_t begin = row * columns + run.begin, asked = level.data()[row] + from - run.noise;
      const bool is_asked = level.data()[row] >= 0 && run.kind == SegmentKind::gumbel_softmax && run.noise >= from &&
                            asked >= 0 && asked < run.width;
      double sum = 0;
      for (int i = 0; i < run.width; ++i) sum += std::exp(double(x[begin + i]));
      for (int i = 0; i < run.width; ++i) {
        const double share = is_asked ? scale * (std::exp(double(x[begin + i])) / sum - (i == asked)) : 0;
        expect_close(with[begin + i], without[begin + i] + share, 4, tolerance<T>, about);
      }
    }
}

}  // namespace

void check_segmented() {
  using enum SegmentKind;
  const auto check_levels = [](auto type) {
    using T = decltype(type);
    check_asked<T>({{3, gumbel_softmax}, {2, SegmentKind::tanh}, {7, gumbel_softmax}, {70, gumbel_softmax}}, 9, 1, 1);
    if (few) return;
    check_asked<T>({{2500, gumbel_softmax}, {4, softmax}, {64, gumbel_softmax}}, 7, 0, 0);
    std::vector<std::pair<int, SegmentKind>> many;
    for (int i = 0; i < 401; ++i) many.push_back({i % 5 + 1, i % 2 == 0 ? gumbel_softmax : SegmentKind::tanh});
    check_asked<T>(many, 40, 11, 1);
  };
  check_levels(float()), check_levels(double());
  for_each_type([](auto type) {
    using T = decltype(type);
    const std::vector<std::pair<int, SegmentKind>> some = {
        {1, SegmentKind::tanh}, {7, gumbel_softmax},      {64, softmax}, {65, gumbel_softmax},
        {9, identity},          {100, SegmentKind::tanh}, {1, softmax},  {300, softmax}};
    check_runs<T>(some, 5, 1);
    if (few) return;
    check_runs<T>(some, 33, 0);
    check_runs<T>({{2500, gumbel_softmax}, {4097, softmax}}, 2, 1);  // more than the registers of a block hold
    check_runs<T>({{3, softmax}}, 1, 0);
    check_runs<T>({{3, softmax}}, 0, 0);
    std::vector<std::pair<int, SegmentKind>> many;  // more than a launch takes
    for (int i = 0; i < 401; ++i) many.push_back({i % 5 + 1, i % 2 == 0 ? gumbel_softmax : SegmentKind::tanh});
    check_runs<T>(many, 3, 0);
  });
}

}  // namespace checks
