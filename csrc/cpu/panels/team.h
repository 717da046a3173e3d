// How threads share the panels of a batch.
#pragma once

#if defined(_WIN32)
#include <thread>
#else
#include <sched.h>
#endif

#include <atomic>
#include <cstdint>
#include <initializer_list>

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
#if defined(_WIN32)
        std::this_thread::yield();
#else
        sched_yield();
#endif
        continue;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
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

// The panels of a pass through a network. The parts of D's batch have panels that alternate, so that a worker's panels
// of all of them lie side by side. Where several consecutive samples are one input of D (`pac`), G's panels are laid
// out so that D's are views of them: the n-th panel of D is made of `pac` panels side by side of G, the first of which
// holds the first sample of each input, and so on.
class Pass {
 public:
  // Of G, or of any network on its own; batch is the number of D's inputs.
  Pass(const Worker& worker, const int64_t* batch, int64_t pac = 1)
      : worker(worker), batch_(batch), layout_(pac), is_packed_(true) {}
  // Of parts of D's batch, which are numbered up to `layout`; first_mask: the part that takes a dropout's first mask.
  Pass(const Worker& worker, const int64_t* batch, int layout, std::initializer_list<int> parts, int first_mask = 0)
      : worker(worker), batch_(batch), layout_(layout), first_mask_(first_mask) {
    for (const int part : parts) add(part);
  }

  void add(int part) { parts_[count_++] = part; }
  const int* begin() const { return parts_; }
  const int* end() const { return parts_ + (is_packed_ ? 1 : count_); }
  bool is_empty() const { return !is_packed_ && count_ == 0; }

  // This worker's panels of it.
  int64_t count() const { return (is_packed_ ? layout_ : count_) * (worker.end - worker.begin); }
  int64_t index(int64_t i) const {
    return is_packed_ || count_ == layout_ ? layout_ * worker.begin + i
                                           : at(parts_[i % count_], worker.begin + i / count_);
  }
  // Where the n-th panel of a part is.
  int64_t at(int part, int64_t n) const { return layout_ * n + part; }
  int part(int64_t index) const { return is_packed_ ? 0 : int(index % layout_); }
  int64_t in_part(int64_t index) const { return index / layout_; }
  int64_t samples(int64_t index) const { return samples_in(in_part(index), batch_[part(index)]); }
  int mask(int64_t index) const { return part(index) - first_mask_; }

  // All panels of a part, and all its samples.
  int64_t panels() const { return (is_packed_ ? layout_ : 1) * worker.team.panels; }
  int64_t panel_of(int part, int64_t i) const { return is_packed_ ? i : at(part, i); }
  int64_t batch(int part) const { return (is_packed_ ? layout_ : 1) * batch_[part]; }

  // Calls f(panel, samples, first, step, member) of each panel for each of the `pac` samples that an input is made of:
  // the panel's column i is the sample first + i step, which is that member of its input there. G's panels have one.
  template <class F>
  void for_members(int64_t pac, const F& f) const {
    for (int64_t j = 0; j < count(); ++j) {
      const int64_t p = index(j), n = samples(p), before = in_part(p) * panel;
      if (is_packed_)
        f(p, n, before * layout_ + p % layout_, layout_, int64_t{0});
      else
        for (int64_t member = 0; member < pac; ++member) f(p, n, before * pac + member, pac, member);
    }
  }

  const Worker& worker;

 private:
  const int64_t* batch_;
  const int64_t layout_;
  const bool is_packed_ = false;
  const int first_mask_ = 0;
  int parts_[3] = {0, 0, 0}, count_ = 0;
};

}  // namespace fastgan::cpu
