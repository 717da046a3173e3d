// The workspace of the CPU engine, and how its threads share the work.
//
// A batch is stored in panels of 32 samples: a panel of a matrix with `width` features is contiguous, [width][32], so a
// layer's weight, read as it stands, multiplies panels into panels, and everything element by element is a plain loop.
// The last panel's unused columns are computed like the others and then set to zero,
// activations and gradients alike.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "../core/step.h"

namespace fastgan::cpu {

constexpr int64_t panel = 32;

inline int64_t panel_count(int64_t batch) { return (batch + panel - 1) / panel; }

// A matrix in panels.
template <class T>
struct Panels {
  T* data = nullptr;
  int64_t stride = 0;  // from one panel to the next

  T* at(int64_t index) const { return data + index * stride; }
};

// Layers as thin as this have their weight gradient from dot products along the batch.
constexpr int64_t thin_width = 8;

template <class T>
struct LayerBuffers {
  Panels<T> x, y;       // the input, which is the output of the layer before, and the output
  Panels<T> saved;      // what the derivative of the activation is a function of: y or z
  Panels<T> grad_z;     // the gradient by z
  T* x_rows = nullptr;  // linear: x with the samples as rows, [in / 32][samples][32], for the weight gradient
  // Of bfloat16, where the products take those (step_amx.h): x and grad_z with the features in pairs, [width /
  // 2][32][2], grad_z, and x with the samples in pairs, [in / 16][panels][16][16][2]; widths are filled up to multiples
  // of 32.
  uint16_t *x_pairs = nullptr, *grad_pairs = nullptr, *grad_rounded = nullptr, *x_turned = nullptr;
  T* mask = nullptr;     // dropout: in panels, times the scale
  T* moments = nullptr;  // batch_norm: mean and 1 / standard deviation of each half: [half][2][width]
  T* sums = nullptr;     // batch_norm: of a panel, [panels][2][width]; backward: then of a half
};

template <class T>
struct NetworkBuffers {
  Panels<T> input;
  LayerBuffers<T>* layers = nullptr;
  int64_t panels = 0;  // that fit
};

template <class T>
struct StepBuffers {
  NetworkBuffers<T> generator, discriminator;
  double* sums = nullptr;  // of a panel: loss and score, [2 panels][2]
  int64_t panels = 0;      // of one half
};

// Threads meet here. They spin, and give way to others after a while, for where cores are shared.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    if (threads_ == 1) return;
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int turn = 0; round_.load(std::memory_order_acquire) == round; ++turn) {
      if (turn > 4000) {
        sched_yield();
        continue;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// Into how many groups the panels are shared out: as many as there are threads, unless that leaves some with fewer
// panels than others; then several threads share each layer's features of one group.
int groups_for(int threads, int64_t panels);

// What the threads of one phase have in common.
struct Team {
  Team(int threads, int64_t panels, int panel_groups)
      : threads(threads), panels(panels), panel_groups(panel_groups), barrier(threads) {}

  const int threads;
  const int64_t panels;    // of one half of the batch
  const int panel_groups;  // threads / panel_groups threads share each group's features
  Barrier barrier;
};

// One thread's share of the panels and, where several threads share those, of each layer's features.
struct Worker {
  Worker(Team& team, int thread)
      : team(team),
        thread(thread),
        group(thread % team.panel_groups),
        part(thread / team.panel_groups),
        parts(team.threads / team.panel_groups),
        begin(team.panels * group / team.panel_groups),
        end(team.panels * (group + 1) / team.panel_groups) {}

  // Waits for the threads that share this one's panels.
  void layer_done() const {
    if (parts > 1) team.barrier.wait();
  }
  int64_t from(int64_t n) const { return n * part / parts; }
  int64_t to(int64_t n) const { return n * (part + 1) / parts; }

  Team& team;
  const int thread, group, part, parts;
  const int64_t begin, end;
};

// The panels of a pass through a network. The discriminator's batch has two halves, whose panels alternate, so that a
// worker's panels of both lie side by side.
struct Pass {
  const Worker& worker;
  int layout;  // halves that the network's buffers hold
  int first_half, halves;

  int64_t count() const { return halves * (worker.end - worker.begin); }
  int64_t index(int64_t i) const {
    return halves == layout ? layout * worker.begin + i : at(first_half, worker.begin + i);
  }
  // Where the n-th panel of a half is.
  int64_t at(int half, int64_t n) const { return layout * n + half; }
  int half(int64_t index) const { return int(index % layout); }
  int64_t in_half(int64_t index) const { return index / layout; }
  // Which of a dropout's masks: a pass of one half has just the first.
  int mask(int64_t index) const { return halves == 1 ? 0 : half(index); }
};

// One half of a batch of two.
template <class T>
Panels<T> half_of(const Panels<T>& both, int half) {
  return {both.data + half * both.stride, 2 * both.stride};
}

// Samples in a panel of a half.
inline int64_t samples_in(int64_t in_half, int64_t batch) {
  const int64_t left = batch - in_half * panel;
  return left < panel ? left : panel;
}

}  // namespace fastgan::cpu
