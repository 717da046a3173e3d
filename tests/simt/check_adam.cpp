#include "../../csrc/cuda/adam.h"
#include "check.h"

namespace checks {

namespace {

template <class T>
void check(const std::vector<int64_t>& sizes, fastgan::AdamOptions o, const float* lr, int offset) {
  const Context context;
  const std::string about = std::string(name_of<T>()) + " adam of " + std::to_string(sizes.size()) + " tensors";
  std::vector<Buffer<T>> param, grad, average, square, most;
  std::vector<float> steps(sizes.size(), 4.0f);
  for (const int64_t n : sizes) {
    param.push_back(random<T>(n, -1, 1, offset));
    grad.push_back(random<T>(n, -1, 1));
    average.push_back(random<T>(n, -1, 1));
    square.push_back(random<T>(n, 0.1, 1));
    most.push_back(random<T>(n, 0.1, 1));
  }
  const auto param_before = param, average_before = average, square_before = square, most_before = most;
  std::vector<fastgan::AdamTensor<T>> tensors;
  for (size_t k = 0; k < sizes.size(); ++k)
    tensors.push_back({sizes[k], param[k].data(), grad[k].data(), average[k].data(), square[k].data(),
                       o.amsgrad ? most[k].data() : nullptr, &steps[k]});
  fastgan::cuda::adam(context, tensors.data(), int(tensors.size()), o, 0.01, lr);
  const double rate = lr != nullptr ? *lr : 0.01;
  for (size_t k = 0; k < sizes.size(); ++k) {
    expect(steps[k] == 5, about + " counts each step once");
    for (int64_t i = 0; i < sizes[k]; ++i) {
      double p = param_before[k][i], g = o.maximize ? -grad[k][i] : grad[k][i];
      if (o.decoupled_weight_decay)
        p -= rate * o.weight_decay * p;
      else
        g += o.weight_decay * p;
      const double m = o.beta1 * average_before[k][i] + (1 - o.beta1) * g;
      const double v = o.beta2 * square_before[k][i] + (1 - o.beta2) * g * g;
      const double largest = o.amsgrad ? std::max(most_before[k][i], v) : v;
      const double root = std::sqrt(largest) / std::sqrt(1 - std::pow(o.beta2, 5)) + o.eps;
      expect_close(average[k][i], m, 1, tolerance<T>, about + ", first moment");
      expect_close(square[k][i], v, 1, tolerance<T>, about + ", second moment");
      expect_close(param[k][i], p - rate / (1 - std::pow(o.beta1, 5)) * m / root, 1, tolerance<T>, about);
      if (o.amsgrad) expect_close(most[k][i], largest, 1, tolerance<T>, about + ", largest second moment");
    }
  }
}

}  // namespace

void check_adam() {
  const float rate = 0.02f;
  for_each_type([&](auto type) {
    using T = decltype(type);
    check<T>({0, 1, 7, 9001}, {0.5, 0.999, 0.1, 1e-8, true, true, false}, &rate, 1);
    if (few) return;
    check<T>({33, 8192}, {0.9, 0.99, 0.1, 1e-8, false, false, true}, nullptr, 0);
    check<T>(std::vector<int64_t>(130, 3), {0.9, 0.99, 0, 1e-8, false, false, false}, nullptr, 0);
  });
}

}  // namespace checks
