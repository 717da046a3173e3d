// Of race.cpp: how much of every thread's work comes before what a thread does next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "race.h"

namespace simt::race {

using Vector = std::vector<uint32_t>;  // of each thread of a block
using Snapshot = std::shared_ptr<const Vector>;
using Snapshots = std::vector<std::pair<uint32_t, Snapshot>>;  // by the number of the block, ascending
using Elsewhere = std::shared_ptr<const Snapshots>;

// How much of each thread's clock came before. Null stands for nothing.
struct Known {
  Snapshot here;  // of the own block
  Elsewhere elsewhere;
};

inline Snapshot joined(const Snapshot& a, const Snapshot& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  Vector both = *a;
  for (size_t t = 0; t < both.size(); ++t) both[t] = std::max(both[t], (*b)[t]);
  return std::make_shared<const Vector>(std::move(both));
}

inline Elsewhere joined(const Elsewhere& a, const Elsewhere& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  Snapshots both;
  auto i = a->begin(), j = b->begin();
  while (i != a->end() || j != b->end()) {
    if (j == b->end() || (i != a->end() && i->first < j->first))
      both.push_back(*i++);
    else if (i == a->end() || j->first < i->first)
      both.push_back(*j++);
    else
      both.emplace_back(i->first, joined(i->second, j->second)), ++i, ++j;
  }
  return std::make_shared<const Snapshots>(std::move(both));
}

inline Known joined(const Known& a, const Known& b) {
  return {joined(a.here, b.here), joined(a.elsewhere, b.elsewhere)};
}

inline uint32_t of_block(const Elsewhere& known, uint32_t block, int thread) {
  if (known == nullptr) return 0;
  const auto found = std::lower_bound(known->begin(), known->end(), block,
                                      [](const auto& entry, uint32_t number) { return entry.first < number; });
  return found == known->end() || found->first != block ? 0 : (*found->second)[thread];
}

// What a thread, or every thread of a block, has of the three: what came before; what came before a fence that did; and
// what the atomics that did have read, which counts from the next fence on.
struct State {
  Known known, fenced;
  Elsewhere read;

  void join(const State& other) {
    known = joined(known, other.known);
    fenced = joined(fenced, other.fenced);
    read = joined(read, other.read);
  }
};

struct Clocks {
  Vector own;                 // each thread's clock
  State all;                  // of all threads alike, since the last barrier of the block
  std::vector<State> thread;  // of each, since then
  bool any_thread = false;    // has such a state
};

}  // namespace simt::race
