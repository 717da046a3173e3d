// One step of alternating training (Goodfellow et al. 2014, algorithm 1) over two networks, as the engine of each
// device takes it: layers, their parameters with the optimizer's state, and the inputs. T is float or double.
#pragma once

#include "adam.h"
#include "gan_losses.h"
#include "mlp.h"
#include "segmented.h"

namespace fastgan {

// Each pass has a switch over them: one that is added does not compile until all of them know it.
#define FASTGAN_LAYER_KINDS(X) X(linear) X(batch_norm) X(dropout) X(identity) X(segmented)

// Of one batch of D: real data, fakes, and the points between them of the penalty gp.
constexpr int most_parts = 3;

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

  // dropout: zeros and ones, (batch, out), of each part of the batch; null where all is kept
  const T* mask[most_parts] = {};
  double keep_scale = 1;  // 1 / (1 - p)

  // segmented, of a generator: its runs, and their Gumbel draws, (batch, gumbel_columns)
  Segments segments{};
  const T* gumbel = nullptr;
  // The cross-entropy of its input, where each sample was asked for one level of one run (Xu et al. 2019,
  // arXiv:1907.00503, section 4.3): the levels, (batch), counted from the draws' column `asked_from` on; or null.
  const int64_t* asked = nullptr;
  int64_t asked_from = 0;
  double asked_scale = 0;  // weight / batch
};

// Of processes that share memory, each one's gradients: how many there are, and in elements how far the first lies from
// one's own, and how far they are apart.
struct GradientsOfAll {
  int64_t count = 1, first = 0, stride = 0;
};

template <class T>
struct StepNetwork {
  int count = 0;
  StepLayer<T>* layers = nullptr;
  // Where the gradients are handed in rather than applied: those of each layer that is updated, in turn, weight and
  // bias; or null.
  T* gradients = nullptr;
  GradientsOfAll all;  // which are added up where they are applied

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

// What is added to D's loss: r1/2 E||grad D(x)||^2 on real data and r2/2 of the same on fakes (Mescheder et al. 2018,
// arXiv:1801.04406, eq. 9), and gp E(||grad D(u x + (1 - u) G(z))|| - gp_center)^2 (Gulrajani et al. 2017,
// arXiv:1704.00028). Gradients are by D's input but for its labels.
struct Penalties {
  double r1 = 0, r2 = 0, gp = 0, gp_center = 1;  // zero: there is none in any step
  bool are_due = false;                          // r1 and r2 in this step; gp is in each
  // D ends in a Sigmoid, which the loss is computed without: the penalties are of sigma(D).
  bool of_probability = false;

  bool exist() const { return r1 > 0 || r2 > 0 || gp > 0; }
  // Of this step, at the points of the parts of D's batch: real data, fakes, and what lies between.
  double weight(int part) const { return part == 2 ? gp : !are_due ? 0 : part == 0 ? r1 : r2; }
};

template <class T>
struct StepProblem {
  StepNetwork<T> generator, discriminator;  // no generator: the half of D alone, with fakes that are given
  int64_t batch = 0, fake_batch = 0;        // samples of real data, and of fakes: different ones for D alone
  int64_t pac = 1;                          // so many consecutive samples are one input of D (PacGAN, arXiv:1712.04086)
  int64_t classes = 0;  // the last `classes` features of a sample are a one-hot label, for both networks
  GanLoss loss = gan_losses[0];
  double real_target = 1, fake_target = 0;  // where the loss takes targets
  Penalties penalties;
  double average_rate = 0;      // 1 - decay of the moving average
  double clip_norm = 0;         // of the gradient of a network, which is scaled down to it; 0: as it is
  bool has_noise = false;       // whether D's inputs have noise, in any step
  double noise_scale = 0;       // of that
  double condition_weight = 0;  // of the cross-entropy by the input of G's last layer, which is segmented
  double gradient_scale = 1;    // of gradients that are applied after they were handed in
  bool bf16 = false;            // products of operands rounded to bfloat16, sums in float; only where T is float

  // Of one D step or G step:
  StridedRows<T> real, noise, fake;                         // fake: of D alone
  const int64_t *labels = nullptr, *fake_labels = nullptr;  // (batch), (fake_batch); null without classes
  const T* mix = nullptr;                                   // u of the penalty gp: (batch / pac)
  const T* instance_noise[2] = {nullptr, nullptr};          // of real data and of fakes: (batch, data); or null
  // In both steps: there is one D step, and the noise of the G step, which has the same labels, lies behind that of the
  // D step.
  bool next_noise_follows = false;

  // The parts of one batch of D, as LossPart has them.
  LossPart discriminator_part(int half) const {
    LossPart part = half == 0 ? loss.real : loss.fake;
    if (loss.takes_targets) part.target = half == 0 ? real_target : fake_target;
    return part;
  }
};

// batch_norm's running statistic after a batch's, as torch has it: an infinite one stays infinite.
template <class T>
FASTGAN_INLINE T moving(T running, double of_batch, double momentum) {
  return T(momentum * of_batch + (1 - momentum) * double(running));
}

// What a step reports.
template <class T>
struct StepSums {
  T d_loss, g_loss, real_score, fake_score, penalty;
};

}  // namespace fastgan
