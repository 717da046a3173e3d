// How threads share the panels of a batch.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

#include "panels.h"

namespace fastgan::cpu {

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

// The threads for so much arithmetic, of which one must have `flops_a_thread` to be worth waking: at most torch's
// number, and one inside another parallel region.
int threads_for(double flops, double flops_a_thread);

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

}  // namespace fastgan::cpu
