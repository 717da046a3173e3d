// The whole step against plain loops in double: every kind of layer, forward and back, and every update, on each of the
// ways that a step can take.
#include <cstdlib>

#include "check_training.h"

namespace checks {

namespace {

using fastgan::LayerKind;

template <class T>
struct PlainLayer {
  fastgan::StepLayer<T> given;
  PlainParameter weight, bias;
  Numbers running_mean, running_var;
  Numbers x, normalised, inverse, z, y;  // of the pass before: inverse is 1 / standard deviation, (halves, out)
};

template <class T>
struct PlainNetwork {
  std::vector<PlainLayer<T>> layers;

  PlainNetwork(const std::vector<fastgan::StepLayer<T>>& given, const Training<T>& training) {
    for (const auto& layer : given) {
      PlainLayer<T> plain{};
      plain.given = layer;
      for (const auto& own : training.parameters)
        for (auto [to, from] : {std::pair{&plain.weight, &layer.weight}, {&plain.bias, &layer.bias}}) {
          if (from->value != own->value.data()) continue;
          *to = plain_of(*own);
          to->is_updated = from->exp_avg != nullptr, to->keeps_most = from->max_exp_avg_sq != nullptr;
          to->averages = from->average != nullptr;
        }
      for (const auto& own : training.statistics) {
        if (layer.running_mean == own->data()) plain.running_mean = numbers_of(*own);
        if (layer.running_var == own->data()) plain.running_var = numbers_of(*own);
      }
      layers.push_back(plain);
    }
  }

  static double mask_of(const fastgan::StepLayer<T>& layer, int64_t half, int64_t place) {
    return layer.mask[0] == nullptr ? 1 : double(layer.mask[half][place]) * layer.keep_scale;
  }

  const Numbers& forward(Numbers x, int64_t batch, int halves, int64_t& batches) {
    for (auto& layer : layers) {
      const int64_t in = layer.given.in, out = layer.given.out, rows = batch * halves;
      layer.x = x;
      layer.z.assign(rows * out, 0);
      layer.normalised.assign(rows * out, 0);
      layer.inverse.assign(halves * out, 0);
      if (layer.given.kind == LayerKind::batch_norm) normalise(layer, batch, halves, batches);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t o = 0; o < out; ++o) {
          const int64_t place = r * out + o;
          double& z = layer.z[place];
          switch (layer.given.kind) {
            case LayerKind::linear:
              z = layer.bias.value[o];
              for (int64_t i = 0; i < in; ++i) z += x[r * in + i] * layer.weight.value[o * in + i];
              break;
            case LayerKind::batch_norm:
              z = layer.normalised[place] * layer.weight.value[o] + layer.bias.value[o];
              break;
            case LayerKind::dropout:
              z = x[place] * mask_of(layer.given, r / batch, place - r / batch * batch * out);
              break;
            case LayerKind::identity:
              z = x[place];
              break;
            case LayerKind::segmented:  // the device's step has none
              std::abort();
          }
        }
      layer.y.clear();
      for (const double z : layer.z) layer.y.push_back(apply(layer.given.activation, z));
      x = layer.y;
    }
    return layers.back().y;
  }

  static void normalise(PlainLayer<T>& layer, int64_t batch, int halves, int64_t& batches) {
    const int64_t width = layer.given.out;
    for (int half = 0; half < halves; ++half)
      for (int64_t c = 0; c < width; ++c) {
        double mean = layer.running_mean[c], variance = layer.running_var[c];
        if (layer.given.batch_statistics) {
          mean = variance = 0;
          for (int64_t r = 0; r < batch; ++r) mean += layer.x[(half * batch + r) * width + c] / double(batch);
          for (int64_t r = 0; r < batch; ++r)
            variance += std::pow(layer.x[(half * batch + r) * width + c] - mean, 2) / double(batch);
          const double momentum = layer.given.cumulative ? 1.0 / double(batches + 1 + half) : layer.given.momentum;
          layer.running_mean[c] += momentum * (mean - layer.running_mean[c]);
          layer.running_var[c] += momentum * (variance * double(batch) / double(batch - 1) - layer.running_var[c]);
        }
        layer.inverse[half * width + c] = 1 / std::sqrt(variance + layer.given.eps);
        for (int64_t r = 0; r < batch; ++r) {
          const int64_t place = (half * batch + r) * width + c;
          layer.normalised[place] = (layer.x[place] - mean) * layer.inverse[half * width + c];
        }
      }
    if (layer.given.batch_statistics) batches += halves;
  }

  // The gradient by the input, of that by the output; those by the parameters are added to `grad`.
  Numbers backward(Numbers grad, int64_t batch, int halves) {
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
      const fastgan::StepLayer<T>& given = layer->given;
      const int64_t in = given.in, out = given.out, rows = batch * halves;
      for (int64_t i = 0; i < rows * out; ++i)
        grad[i] *= derivative(given.activation, saves_output(given.activation) ? layer->y[i] : layer->z[i], 1);
      Numbers grad_x(rows * in);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t o = 0; o < out; ++o) {
          const int64_t place = r * out + o, half = r / batch;
          const double g = grad[place];
          switch (given.kind) {
            case LayerKind::linear:
              if (!given.bias_cancels) layer->bias.grad[o] += g;
              for (int64_t i = 0; i < in; ++i) {
                layer->weight.grad[o * in + i] += g * layer->x[r * in + i];
                grad_x[r * in + i] += g * layer->weight.value[o * in + i];
              }
              break;
            case LayerKind::batch_norm: {
              layer->bias.grad[o] += g, layer->weight.grad[o] += g * layer->normalised[place];
              double mean = 0, along = 0;
              for (int64_t q = 0; given.batch_statistics && q < batch; ++q) {
                const int64_t other = (half * batch + q) * out + o;
                mean += grad[other] / double(batch), along += grad[other] * layer->normalised[other] / double(batch);
              }
              grad_x[place] = layer->weight.value[o] * layer->inverse[half * out + o] *
                              (g - mean - layer->normalised[place] * along);
              break;
            }
            case LayerKind::dropout:
              grad_x[place] = g * mask_of(given, half, place - half * batch * out);
              break;
            case LayerKind::identity:
              grad_x[place] = g;
              break;
            case LayerKind::segmented:
              std::abort();
          }
        }
      grad = grad_x;
    }
    return grad;
  }

  void update(double rate_of_average) {
    for (auto& layer : layers) layer.weight.update(rate_of_average), layer.bias.update(rate_of_average);
  }
  void forget_gradients() {
    for (auto& layer : layers)
      for (PlainParameter* parameter : {&layer.weight, &layer.bias}) parameter->grad.assign(parameter->grad.size(), 0);
  }
};

// A D step and a G step by the definitions.
template <class T>
struct PlainStep {
  explicit PlainStep(const Training<T>& given)
      : given(given), generator(given.generator, given), discriminator(given.discriminator, given) {}

  Numbers beside_labels(const Numbers& rows, int64_t width) const {
    Numbers all;
    for (int64_t r = 0; r < batch; ++r) {
      all.insert(all.end(), rows.begin() + r * width, rows.begin() + (r + 1) * width);
      for (int64_t c = 0; c < given.classes; ++c) all.push_back(given.labels.data()[r] == c);
    }
    return all;
  }

  // Sign times the mean cross-entropy of a half against its target, and the gradient by its logits.
  double loss(const Numbers& logits, int half, double target, double sign, Numbers& grad, double& score) const {
    double sum = 0;
    score = 0;
    for (int64_t r = half * batch; r < (half + 1) * batch; ++r) {
      const double x = logits[r], sigma = 1 / (1 + std::exp(-x));
      sum -= sign * (target * std::log(sigma) + (1 - target) * std::log(1 - sigma)) / double(batch);
      score += sigma / double(batch);
      grad.push_back(sign * (sigma - target) / double(batch));
    }
    return sum;
  }

  void run(bool fresh) {
    Numbers noise, real;
    for (int64_t r = 0; r < batch; ++r) {
      for (int64_t c = 0; c < given.latent; ++c) noise.push_back(given.noise[c * batch + r]);
      for (int64_t c = 0; c < given.data; ++c) real.push_back(given.real[r * given.data + c]);
    }
    noise = beside_labels(noise, given.latent);
    Numbers both = beside_labels(real, given.data), grad;
    Numbers fakes = beside_labels(generator.forward(noise, batch, 1, batches), given.data);
    both.insert(both.end(), fakes.begin(), fakes.end());
    const Numbers logits = discriminator.forward(both, batch, 2, batches);
    sums.d_loss = loss(logits, 0, 0.9, 1, grad, sums.real_score);
    sums.d_loss += loss(logits, 1, 0.1, 1, grad, sums.fake_score);
    discriminator.backward(grad, batch, 2);
    discriminator.update(0);

    if (fresh) fakes = beside_labels(generator.forward(noise, batch, 1, batches), given.data);
    grad.clear();
    double score = 0;
    const Numbers judged = discriminator.forward(fakes, batch, 1, batches);
    sums.g_loss = loss(judged, 0, given.extra ? 0 : 1, given.extra ? -1 : 1, grad, score);
    const Numbers by_input = discriminator.backward(grad, batch, 1);
    discriminator.forget_gradients();
    Numbers by_fakes;
    for (int64_t r = 0; r < batch; ++r)
      for (int64_t c = 0; c < given.data; ++c) by_fakes.push_back(by_input[r * (given.data + given.classes) + c]);
    generator.backward(by_fakes, batch, 1);
    generator.update(average_rate);
  }

  const Training<T>& given;
  static constexpr int64_t batch = Training<T>::batch;
  PlainNetwork<T> generator, discriminator;
  int64_t batches = 0;
  fastgan::StepSums<double> sums{};
};

template <class T>
void check(Training<T>& training, const fastgan::cuda::StepOptions& options, bool fresh, const Context& context,
           const std::string& way) {
  const std::string about = std::string(name_of<T>()) + " step " + way + (training.extra ? " of all layers" : "") +
                            ", " + std::to_string(training.classes) + " classes, optimizer " +
                            std::to_string(int(training.optimizer));
  const double relative = 20 * tolerance<T>;
  PlainStep<T> plain(training);
  plain.run(fresh);
  const auto sums = training.run(options, fresh, context);
  expect_close(sums.d_loss, plain.sums.d_loss, 1, relative, about + ", D's loss");
  expect_close(sums.g_loss, plain.sums.g_loss, 1, relative, about + ", G's loss");
  expect_close(sums.real_score, plain.sums.real_score, 1, relative, about + ", the score of the real half");
  expect_close(sums.fake_score, plain.sums.fake_score, 1, relative, about + ", the score of the fake half");
  expect(training.batches.data()[0] == plain.batches, about + ", batches are counted");
  const auto expect_numbers = [&](const T* values, const Numbers& exact, const char* what) {
    for (size_t i = 0; values != nullptr && i < exact.size(); ++i)
      expect_close(double(values[i]), exact[i], 1, relative, about + ", " + what);
  };
  for (const auto& [given, network] :
       {std::pair{&training.generator, &plain.generator}, {&training.discriminator, &plain.discriminator}})
    for (size_t l = 0; l < given->size(); ++l) {
      const fastgan::StepLayer<T>& layer = (*given)[l];
      const PlainLayer<T>& exact = network->layers[l];
      expect_numbers(layer.running_mean, exact.running_mean, "running mean");
      expect_numbers(layer.running_var, exact.running_var, "running variance");
      for (const auto& [parameter, of] : {std::pair{&layer.weight, &exact.weight}, {&layer.bias, &exact.bias}}) {
        expect_numbers(parameter->value, of->value, "parameters");
        expect_numbers(parameter->exp_avg, of->exp_avg, "first moments");
        expect_numbers(parameter->exp_avg_sq, of->exp_avg_sq, "second moments");
        expect_numbers(parameter->max_exp_avg_sq, of->most, "largest second moments");
        expect_numbers(parameter->average, of->average, "moving averages");
      }
    }
}

template <class T>
void check_ways(bool extra, int64_t classes, Optimizer optimizer) {
  using fastgan::cuda::Rounding;
  const auto training = [&] { return Training<T>(extra, classes, optimizer); };
  const int linear_layers = 4, layouts = 3;  // the workspace's size, and one for each step
  {
    Training<T> layered = training();
    const LibraryContext context([](int64_t) { return false; });
    check(layered, {Rounding::none, false}, classes > 0, context, "by layers");
    expect(context.questions > layouts * linear_layers, "a launch a layer asks for each product who does it");
  }
  {
    Training<T> library = training();
    check(library, {}, true, LibraryContext([](int64_t m) { return m % 2 == 1; }), "with a library");
  }
  {
    Training<T> library = training();
    check(library, {}, false, LibraryContext([](int64_t m) { return m > 20; }), "with a library for what is large");
  }
  if (extra) return;
  Training<T> narrow = training();
  const LibraryContext context([](int64_t) { return false; });
  check(narrow, {Rounding::none, true}, classes == 0, context, "by networks");
  expect(context.questions == layouts * linear_layers, "a launch a network asks for no product");
}

}  // namespace

void check_step_exact() {
  check_ways<float>(true, 2, Optimizer::all_options);
  if (few) return;
  for (const bool extra : {false, true})
    for (const int64_t classes : {0, 1, 3})
      for (const Optimizer optimizer : {Optimizer::all_options, Optimizer::plain, Optimizer::frozen_below}) {
        check_ways<double>(extra, classes, optimizer);
        if (classes == 3) check_ways<float>(extra, classes, optimizer);
      }
}

}  // namespace checks
