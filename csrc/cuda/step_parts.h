// CUDA kernels of what is left of a whole step beside its layers' products. Matrices are contiguous, rows x cols; T is
// float or double.
#pragma once

#include "../core/step.h"
#include "platform.h"

namespace fastgan::cuda {

// What is made of a label that is not in [0, classes): it is of no class, and the statistics of its step are NaN.
struct OddLabels {
  unsigned* found = nullptr;  // zero before a step and after it; null where there are no labels
  int64_t* told = nullptr;    // in memory that the host reads: the first such label of a step; or null
};

// Rows of any strides, each followed by a one-hot label, as a matrix.
template <class T>
struct PackedRows {
  StridedRows<T> rows;
  T* to;  // (batch, rows.width + classes)
};
constexpr int most_packed = 2;

// One launch for `count` such matrices. labels is (batch), or null where classes is 0.
template <class T>
void pack_rows(const Context& context, const PackedRows<T>* packed, int count, int64_t batch, const int64_t* labels,
               int64_t classes, OddLabels odd);

// The losses of one or two halves of a batch of logits, each against its own target, and the gradient by z of the last
// layer.
template <class T>
struct StepLoss {
  int64_t batch;  // of a half
  int halves;
  const T *logits, *saved;         // (halves * batch); saved: what the derivative of the activation is a function of
  ActivationArguments activation;  // of the last layer
  double target[2];
  double sign;                    // 1, or -1
  T* grad_z;                      // (halves * batch)
  T* loss;                        // sign times the sum over the halves of their means
  T* score[2];                    // the mean sigmoid of each half, or null
  unsigned* odd_label = nullptr;  // OddLabels::found
  bool is_last_of_step = false;
};
template <class T>
void step_loss(const Context& context, const StepLoss<T>& arguments);

// Dropout, or no more than an activation.
template <class T>
struct Dropout {
  const T* mask[2];  // (batch, width) of each half, zeros and ones, or null
  double scale;
  int64_t batch, width;
  int halves;
};

// z = x mask scale, y = activation(z).
template <class T>
void dropout_forward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation, const T* x,
                     T* z, T* y);

// The gradient by the first `target_width` features of x, and on through the activation before, whose derivative is a
// function of saved (halves * batch, target_width).
template <class T>
void dropout_backward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation,
                      int64_t target_width, const T* grad_z, const T* saved, T* grad);

// One update of n elements, where their gradient is in memory.
template <class T>
void update_parameter(const Context& context, const AdamParameter<T>& parameter, int64_t n, const T* gradient,
                      T average_rate);

}  // namespace fastgan::cuda
