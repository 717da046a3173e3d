// One step of alternating training (Goodfellow et al. 2014, algorithm 1) over two networks, as the engine of each
// device takes it: layers, their parameters with the optimizer's state, and the inputs. T is float or double.
#pragma once

#include "adam.h"
#include "mlp.h"

namespace fastgan {

// Each pass has a switch over them: one that is added does not compile until all of them know it.
#define FASTGAN_LAYER_KINDS(X) X(linear) X(batch_norm) X(dropout) X(identity)

enum class LayerKind : int { FASTGAN_LAYER_KINDS(FASTGAN_ENUMERATOR) };
constexpr const char* layer_kind_names[] = {FASTGAN_LAYER_KINDS(FASTGAN_NAME)};

// y = activation(z), and z is what the kind says of the layer's input.
template <class T>
struct StepLayer {
  LayerKind kind = LayerKind::identity;
  int64_t in = 0, out = 0;  // widths, the same but for linear
  ActivationArguments activation{Activation::identity, 0};
  AdamParameter<T> weight, bias;  // linear: (out, in) and (out); batch_norm: (out) and (out)
  // linear: the batch_norm that follows takes the mean off again, and with it the bias. Its gradient is zero; what
  // rounding would leave of it Adam would scale up to whole steps, another one on each machine.
  bool bias_cancels = false;

  // batch_norm (Ioffe and Szegedy 2015): the statistics of the batch, or the running ones as they are
  bool batch_statistics = false;
  T* running_mean = nullptr;  // (out), or null
  T* running_var = nullptr;
  double momentum = 0;  // of a batch in the running statistics; ignored where that is cumulative
  int64_t* batches = nullptr;
  bool cumulative = false;  // the mean over all batches: momentum 1 / batches
  double eps = 0;

  // dropout: zeros and ones, (batch, out), of the first and the second half of the batch; null where all is kept
  const T* mask[2] = {nullptr, nullptr};
  double keep_scale = 1;  // 1 / (1 - p)
};

template <class T>
struct StepNetwork {
  int count = 0;
  StepLayer<T>* layers = nullptr;

  int64_t in() const { return layers[0].in; }
  int64_t out() const { return layers[count - 1].out; }

  // The lowest layer that has something to update: no gradient is wanted below it. `count` where there is none.
  FASTGAN_INLINE int lowest_updated() const {
    for (int l = 0; l < count; ++l)
      if (layers[l].weight.is_updated() || layers[l].bias.is_updated()) return l;
    return count;
  }
};

// take(width) hands out a matrix; `output` is where y goes where that is not one of its own, or null.
template <class Matrix, class T, class Take>
LayerMatrices<Matrix> lay_out_layer(const StepLayer<T>& layer, const Matrix* output, const Take& take) {
  LayerMatrices<Matrix> own;
  own.y = output != nullptr ? *output : take(layer.out);
  own.saved = saves_output(layer.activation) ? own.y : take(layer.out);
  own.grad_z = take(layer.out);
  return own;
}

template <class T>
struct StepProblem {
  StepNetwork<T> generator, discriminator;
  int64_t batch = 0, classes = 0;  // the last `classes` inputs of both networks are a one-hot label
  double real_target = 1, fake_target = 0;
  bool minimax = false;
  double average_rate = 0;  // 1 - decay of the moving average
  bool bf16 = false;        // products of operands rounded to bfloat16, sums in float; only where T is float

  // Of one D step or G step:
  StridedRows<T> real, noise;
  const int64_t* labels = nullptr;  // (batch), or null without classes
};

// batch_norm's running statistic after a batch's, as torch has it: an infinite one stays infinite.
template <class T>
FASTGAN_INLINE T moving(T running, double of_batch, double momentum) {
  return T(momentum * of_batch + (1 - momentum) * double(running));
}

// What a step reports.
template <class T>
struct StepSums {
  T d_loss, g_loss, real_score, fake_score;
};

}  // namespace fastgan
