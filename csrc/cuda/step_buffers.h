// Where a step's matrices lie in its workspace. Only step.cu includes this.
#pragma once

#include <algorithm>
#include <vector>

#include "../core/arena.h"
#include "parts.h"

namespace fastgan::cuda {

template <class T>
struct LayerBuffers : LayerMatrices<T*> {
  T* moments = nullptr;  // batch_norm: [part][2][out]
  // Of a penalty of a smooth D: (penalized rows, out), the gradient of D's output by y, then what it adds to grad_z.
  T* curved = nullptr;
  T *grad_weight = nullptr, *grad_bias = nullptr;  // where gradients are clipped
  T* gradient = nullptr;  // where a library makes the weight gradient: (out, in), then of the bias
};

template <class T>
struct NetworkBuffers {
  T* input = nullptr;
  std::vector<LayerBuffers<T>> layers;

  // The same from a row on, which is the first of a part.
  NetworkBuffers from(const StepNetwork<T>& network, const Parts& parts, int part) const {
    NetworkBuffers moved = *this;
    const int64_t row = parts.begin[part];
    moved.input += row * network.in();
    for (int l = 0; l < network.count; ++l) {
      const int64_t out = network.layers[l].out;
      LayerBuffers<T>& layer = moved.layers[l];
      layer.y += row * out, layer.saved += row * out, layer.grad_z += row * out;
      if (layer.moments != nullptr) layer.moments += part * 2 * out;
    }
    return moved;
  }
};

// What a D step makes of D's derivatives by its input: of which parts of the batch they are wanted, and how the second
// derivatives come about. See step_penalties.h.
struct Penalized {
  int first = 0, end = 0;  // parts; with what lies between, whose penalty may be none
  bool is_smooth = false;  // D has activations with a second derivative

  bool any() const { return end > first; }
  bool has(int part) const { return part >= first && part < end; }
};

// The parts of D's batch.
template <class T>
Parts parts_of(const StepProblem<T>& problem) {
  Parts parts;
  parts.add(problem.batch / problem.pac);
  parts.add(problem.fake_batch / problem.pac);
  if (problem.penalties.gp > 0) parts.add(problem.batch / problem.pac);
  return parts;
}

template <class T>
Penalized penalized_of(const StepProblem<T>& problem) {
  Penalized penalized;
  for (int part = most_parts - 1; part >= 0; --part)
    if (problem.penalties.weight(part) > 0) penalized.first = part;
  for (int part = 0; part < most_parts; ++part)
    if (problem.penalties.weight(part) > 0) penalized.end = part + 1;
  for (int l = 0; l < problem.discriminator.count; ++l)
    if (!is_piecewise_linear(problem.discriminator.layers[l].activation.activation)) penalized.is_smooth = true;
  return penalized;
}

template <class T>
struct Buffers {
  NetworkBuffers<T> generator, discriminator;  // the generator's with all batches that one pass of it makes
  T* fakes;                                    // D's input of the part of the fakes
  T* by_input;  // where the gradient by G's output comes out with labels in between: (fakes, D's in), or null
  // With penalties: how often each row counts in a gradient by a bias, and without second derivatives two matrices of
  // penalized rows, as wide as the widest layer, where a step passes from layer to layer.
  T *row_weight = nullptr, *steps[2] = {};
};

using StepArena = Arena<256>;

// `rows` of y and grad_z, and `more` of the input. `output` is where the last layer's y goes where that is not a buffer
// of its own.
template <class T>
NetworkBuffers<T> lay_out(StepArena& arena, const StepNetwork<T>& network, int64_t rows, int64_t more, T* output) {
  NetworkBuffers<T> buffers;
  if (network.count == 0) return buffers;
  buffers.input = arena.take<T>((rows + more) * network.in());
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    const bool given = l == network.count - 1 && output != nullptr;
    LayerBuffers<T> own{
        lay_out_layer(layer, given ? &output : nullptr, [&](int64_t width) { return arena.take<T>(rows * width); })};
    switch (layer.kind) {
      case LayerKind::batch_norm:
        own.moments = arena.take<T>(most_parts * 2 * layer.out);
        break;
      case LayerKind::linear:
      case LayerKind::dropout:
      case LayerKind::identity:
      case LayerKind::segmented:
        break;
    }
    buffers.layers.push_back(own);
  }
  return buffers;
}

// The gradients of the parameters that are updated, in memory that the networks take turns at.
template <class T>
void lay_out_gradients(const StepNetwork<T>& network, NetworkBuffers<T>& buffers, T* at, int64_t& taken) {
  taken = 0;
  const auto take = [&](const AdamParameter<T>& parameter, int64_t n) -> T* {
    if (!parameter.is_updated()) return nullptr;
    T* const own = at == nullptr ? nullptr : at + taken;
    taken += (n + 63) / 64 * 64;
    return own;
  };
  for (int l = 0; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    buffers.layers[l].grad_weight =
        take(layer.weight, layer.kind == LayerKind::linear ? layer.out * layer.in : layer.out);
    buffers.layers[l].grad_bias = take(layer.bias, layer.out);
  }
}

// Where a library makes the gradients of `rows` rows: a place a layer, as updates run beside each other. The networks
// take turns at the memory.
struct LibraryGradients {
  std::vector<int64_t> places;  // of each layer; negative: there is none
  int64_t size = 0;

  template <class T>
  LibraryGradients(const Context& context, const StepNetwork<T>& network, int64_t rows) {
    for (int l = 0; l < network.count; ++l) {
      const StepLayer<T>& layer = network.layers[l];
      const bool is_one =
          layer.kind == LayerKind::linear &&
          context.prefers_library(ProductShape{ProductRole::weight_gradient, layer.out, layer.in, rows}, sizeof(T));
      places.push_back(is_one ? size : -1);
      if (is_one) size += (layer.out * layer.in + layer.out + 63) / 64 * 64;
    }
  }

  template <class T>
  void lay_out(NetworkBuffers<T>& buffers, T* at) const {
    for (size_t l = 0; l < places.size(); ++l)
      if (places[l] >= 0 && at != nullptr) buffers.layers[l].gradient = at + places[l];
  }
};

// Whether G writes its output where D reads it, and D's input stays as it is until the G step.
template <class T>
bool fakes_are_in_place(const StepProblem<T>& problem) {
  const Penalized penalized = penalized_of(problem);
  const bool are_mixed = penalized.has(1) && !penalized.is_smooth;
  return problem.classes == 0 && problem.instance_noise[1] == nullptr && !are_mixed;
}

// Whether G makes the fakes of both steps in one pass, since it stays as it is in between: where each of its layers
// takes a row by itself, and the second fakes have a place until the G step, behind the first ones where that is D's
// input.
template <class T>
bool generates_ahead(const StepProblem<T>& problem) {
  if (!problem.next_noise_follows) return false;
  for (int l = 0; l < problem.generator.count; ++l) {
    const StepLayer<T>& layer = problem.generator.layers[l];
    switch (layer.kind) {
      case LayerKind::linear:
      case LayerKind::identity:
        break;
      case LayerKind::dropout:
        if (layer.mask[0] != nullptr) return false;
        break;
      case LayerKind::batch_norm:
      case LayerKind::segmented:
        return false;
    }
  }
  const bool are_last = parts_of(problem).count == 2 && !penalized_of(problem).any();
  return !fakes_are_in_place(problem) || (are_last && !problem.loss.is_paired);
}

template <class T>
Buffers<T> lay_out(const Context& context, StepArena& arena, const StepProblem<T>& problem) {
  Buffers<T> buffers;
  const StepNetwork<T>& discriminator = problem.discriminator;
  const Parts parts = parts_of(problem);
  const Penalized penalized = penalized_of(problem);
  const int64_t rows_penalized = penalized.any() ? parts.some(penalized.first, penalized.end).rows() : 0;
  const int64_t rows = parts.rows() + (penalized.is_smooth ? rows_penalized : 0);
  int64_t widest = discriminator.in();
  for (int l = 0; l < discriminator.count; ++l) widest = std::max(widest, discriminator.layers[l].out);
  const bool is_in_place = fakes_are_in_place(problem), is_ahead = generates_ahead(problem);
  buffers.discriminator =
      lay_out<T>(arena, discriminator, rows, is_ahead && is_in_place ? parts.rows_of(1) : 0, nullptr);
  T* const input = buffers.discriminator.input;
  buffers.fakes = input == nullptr ? nullptr : input + parts.begin[1] * discriminator.in();
  buffers.generator = lay_out<T>(arena, problem.generator, (is_ahead ? 2 : 1) * problem.batch, 0,
                                 is_in_place ? buffers.fakes : nullptr);
  const bool is_interleaved = problem.classes > 0 && problem.pac > 1 && problem.generator.count > 0;
  buffers.by_input = is_interleaved ? arena.take<T>(parts.rows_of(1) * discriminator.in()) : nullptr;
  if (penalized.any()) {
    buffers.row_weight = arena.take<T>(rows);
    if (penalized.is_smooth)
      for (int l = 0; l + 1 < discriminator.count; ++l)
        buffers.discriminator.layers[l].curved = arena.take<T>(rows_penalized * discriminator.layers[l].out);
    else
      for (T*& steps : buffers.steps) steps = arena.take<T>(rows_penalized * widest);
  }
  const LibraryGradients by_library[] = {{context, problem.generator, problem.batch}, {context, discriminator, rows}};
  T* const gradients = arena.take<T>(std::max(by_library[0].size, by_library[1].size));
  by_library[0].lay_out(buffers.generator, gradients), by_library[1].lay_out(buffers.discriminator, gradients);
  if (problem.clip_norm > 0) {
    int64_t of_generator = 0, of_discriminator = 0;
    lay_out_gradients<T>(problem.generator, buffers.generator, nullptr, of_generator);
    lay_out_gradients<T>(discriminator, buffers.discriminator, nullptr, of_discriminator);
    T* const at = arena.take<T>(std::max(of_generator, of_discriminator));
    lay_out_gradients(problem.generator, buffers.generator, at, of_generator);
    lay_out_gradients(discriminator, buffers.discriminator, at, of_discriminator);
  }
  return buffers;
}

}  // namespace fastgan::cuda
