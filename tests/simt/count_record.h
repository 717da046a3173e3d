// Of count.cpp: what is kept of each launch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "count_cache.h"

namespace simt {

struct Launch;

namespace count {

// Of a thread, outside the loop along k and inside it.
struct Path {
  std::array<int64_t, 2> accesses{}, trips{}, shared_trips{}, barriers{}, collectives{};
  int64_t atomics = 0, fences = 0, fills = 0, steps = 0, grid_barriers = 0;
  int64_t cluster_barriers = 0, cluster_waits = 0;
  int64_t remote_accesses = 0, remote_trips = 0;  // of the shared memory of the cluster's other blocks

  void raise(const Path& o) {
    for (int i = 0; i < 2; ++i) {
      accesses[i] = std::max(accesses[i], o.accesses[i]);
      trips[i] = std::max(trips[i], o.trips[i]);
      shared_trips[i] = std::max(shared_trips[i], o.shared_trips[i]);
      barriers[i] = std::max(barriers[i], o.barriers[i]);
      collectives[i] = std::max(collectives[i], o.collectives[i]);
    }
    atomics = std::max(atomics, o.atomics), fences = std::max(fences, o.fences);
    fills = std::max(fills, o.fills), steps = std::max(steps, o.steps);
    grid_barriers = std::max(grid_barriers, o.grid_barriers);
    cluster_barriers = std::max(cluster_barriers, o.cluster_barriers);
    cluster_waits = std::max(cluster_waits, o.cluster_waits);
    remote_accesses = std::max(remote_accesses, o.remote_accesses);
    remote_trips = std::max(remote_trips, o.remote_trips);
  }
};

// Of global memory, by the width of a thread's access: 4 (or less), 8, 16 bytes.
struct Traffic {
  std::array<int64_t, 3> instructions{};
  int64_t requested = 0, needed = 0, split = 0;  // sectors
};

struct Record {
  std::string name, note;  // note: of what is no kernel of ours
  size_t branch = 0;       // by the order in which they have launches; 0: the step itself
  std::set<size_t> after;  // the launches, by their places in `records`, that it waits for
  const Launch* launch = nullptr;
  int64_t blocks = 0, threads = 0, shared_bytes = 0, cluster = 0;  // cluster: blocks of each
  bool cooperative = false;
  std::vector<const void*> places;  // some of its instructions, by which its kernel is found
  Path path;
  Traffic read, written, copied;
  std::array<int64_t, 2> copies{};                     // of 4 and of 16 bytes, of threads
  std::array<int64_t, 2> wavefronts{}, least{};        // outside and inside the loop
  int64_t copy_wavefronts = 0;                         // those of asynchronous copies among them
  int64_t ways = 1, shared_accesses = 0, vectors = 0;  // vectors: 16 bytes that a thread reads inside the loop
  int64_t remote_bytes = 0;                            // of the shared memory of the cluster's other blocks
  std::map<std::string, int64_t> products;             // instructions of the tensor cores, of warps
  int64_t l2 = 0, hbm_read = 0;                        // sectors
  uint64_t hbm_written = 0;
};

inline std::vector<Record> records;
inline Cache cache(size_t{50} << 20);

inline Record& record() { return records.back(); }

// Of a step: that of the next launch, which of them have had one, and what the next launch of each waits for.
struct Branches {
  const void* now = nullptr;
  std::vector<const void*> known{nullptr};
  std::map<const void*, std::set<size_t>> after;
};
inline Branches branches;

// The next launch.
inline Record& add_record() {
  Record& added = records.emplace_back();
  auto& known = branches.known;
  const auto found = std::find(known.begin(), known.end(), branches.now);
  added.branch = size_t(found - known.begin());
  if (found == known.end()) known.push_back(branches.now);
  added.after = std::exchange(branches.after[branches.now], {records.size() - 1});
  return added;
}

inline void touch(uint64_t sector, bool writes) {
  Record& to = record();
  ++to.l2;
  to.hbm_read += cache.touch(sector, writes, to.hbm_written);
}

}  // namespace count
}  // namespace simt
