// CUDA kernels of what is left of a whole step beside its layers' products and its penalties. Matrices are contiguous,
// rows x cols; T is float or double.
#pragma once

#include "../core/step.h"
#include "adam.h"
#include "parts.h"
#include "platform.h"

namespace fastgan::cuda {

// What is made of a label that is not in [0, classes): it is of no class, and the statistics of its step are NaN.
struct OddLabels {
  unsigned* found = nullptr;  // zero before a step and after it; null where there are no labels
  int64_t* told = nullptr;    // in memory that the host reads: the first such label of a step; or null
};

// Rows of any strides, with noise on them where there is some, each followed by a one-hot label, as a matrix.
template <class T>
struct PackedRows {
  StridedRows<T> rows;
  int64_t batch;
  T* to;                          // (batch, rows.width + classes)
  const int64_t* labels;          // (batch), or null where there are no classes
  const T* noise = nullptr;       // (batch, rows.width), or null
  const double* scale = nullptr;  // of the noise, on the device
};
constexpr int most_packed = 3;

// One launch for `count` such matrices.
template <class T>
void pack_rows(const Context& context, const PackedRows<T>* packed, int count, int64_t classes, OddLabels odd);

// The points u real + (1 - u) fake, with one u a row. A row is of samples of `sample` features, of which the first
// `data` are mixed; the others, the labels, are those of `real`.
template <class T>
void mix_rows(const Context& context, int64_t rows, int64_t width, int64_t sample, int64_t data, const T* u,
              const T* real, const T* fake, T* to);

// The gradient by G's output (samples, data), of that by rows of samples with their labels (samples, sample), and on
// through G's last activation.
template <class T>
void unpack_gradient(const Context& context, int64_t samples, int64_t sample, int64_t data,
                     ActivationArguments activation, const T* packed, const T* saved, T* grad);

// The loss of one batch of logits, and the gradient by z of the last layer; where a penalty wants it, the start of the
// chain of D's own derivatives (step_penalties.h).
template <class T>
struct StepLoss {
  Parts parts;  // of the logits; the loss is of the first `judged`
  int judged;
  const T *logits, *saved;         // (rows); saved: what the derivative of the activation is a function of
  ActivationArguments activation;  // of the last layer
  LossPart part[2];                // of each part; of pairs the first
  double pairs[2];                 // the loss is of sums of a logit of each part, so often each; zeros: of the logits
  bool scores_probability;
  T* grad_z;  // (rows)
  // The chain of D's own derivatives starts at the rows of the parts [first_unit, end_unit): in `unit`, or, where that
  // is null, in grad_z, in the place of the loss's gradient.
  int first_unit = 0, end_unit = 0;
  T* unit = nullptr;  // rows that follow those of grad_z
  // How often each row of grad_z counts in a gradient by a bias, or null: once; where D's own derivative is, as often
  // as the loss's derivative by the logit says; those of `unit` not at all.
  T* row_weight = nullptr;
  T* loss;
  T* score[2];                    // the mean score of each part, or null
  T* penalty = nullptr;           // set to zero, or null
  unsigned* odd_label = nullptr;  // OddLabels::found
  bool is_last_of_step = false;
  AdamPreparation<T> adam;  // of the updates that come after it
};
template <class T>
void step_loss(const Context& context, const StepLoss<T>& arguments);

// The last layer of D, whose output is one logit a row, the loss, and the gradient by z of the layer before.
template <class T>
struct StepHead {
  StepLoss<T> loss;  // its logits and saved are made here
  int64_t in;
  const T* x;       // (rows, in)
  const T* weight;  // (in)
  const T* bias;    // (1), or null
  T* z;             // (rows), or null
  T* y;             // (rows): the logits
  // The gradient goes on for the rows of the parts [first, end): grad_before = grad_z weight d(saved_before).
  int first, end;
  const T* saved_before;  // (rows, in)
  ActivationArguments activation_before;
  T* grad_before;  // (rows, in)
};
template <class T>
void step_head(const Context& context, const StepHead<T>& arguments);

// Dropout, or no more than an activation.
template <class T>
struct Dropout {
  const T* mask[most_parts];  // (rows of the part, width), zeros and ones, or null
  double scale;
  Parts parts;
  int64_t width;
};

// z = x mask scale, y = activation(z).
template <class T>
void dropout_forward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation, const T* x,
                     T* z, T* y);

// The gradient by the first `target_width` features of x, and on through the activation before, whose derivative is a
// function of saved (rows, target_width), or through none where that is null.
template <class T>
void dropout_backward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation,
                      int64_t target_width, const T* grad_z, const T* saved, T* grad);

// to += from.
template <class T>
void add_rows(const Context& context, int64_t n, const T* from, T* to);

// A parameter and its gradient in memory.
template <class T>
struct Update {
  AdamParameter<T> parameter;
  T* gradient;
  int64_t n;
};

// One update, where the gradient is in memory.
template <class T>
void update_parameter(const Context& context, const Update<T>& update, T average_rate);

// The updates of all parameters of an optimizer by gradients that are scaled down to a norm of at most `most`, all
// together, as torch's clip_grad_norm_ scales them.
template <class T>
void update_clipped(const Context& context, const Update<T>* updates, int count, double most, T average_rate);

}  // namespace fastgan::cuda
