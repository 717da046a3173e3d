// Counts, launch by launch, on the fast engine, what decides its time on hardware. The kernels are compiled with
// -fsanitize=thread, whose calls land in tsan.cpp and from there here.
//
// What is counted, and where it is less than the hardware's own doing:
//   instruction   the accesses of a warp's lanes from one place of the code, the n-th time each since the block's last
//                 barrier. Neighbours that one thread reads or writes one after the other, which make up an aligned 8
//                 or 16 bytes, are one access: g++ splits the vectors of the sources. What nvcc makes of them is
//                 tools/machine_code.py's to say, and so `split` counts the sectors of the parts too.
//   sectors       of 32 bytes: those that an instruction touches, and as many as its bytes would fill. No first-level
//                 cache: each instruction asks the second.
//   wavefronts    of shared memory: the most different words that an instruction wants of one of the 32 banks, by each
//                 half of the warp where it is of 16 bytes. `ways` is that over the least it could be for so many
//                 words. An asynchronous copy takes one for each sector and each line of 128 bytes that it reads: an
//                 H200 took 18 for 16 sectors of 4 lines and 31 for 20 of 11, wherever they went in shared memory.
//                 What a copy fills with zeros alone takes none here.
//   round trips   of a thread to global memory: a load after anything but loads (a store, barrier, collective, fence,
//                 atomic, wait); a load whose address lies within 4 KB after a pointer that was loaded since; and the
//                 same instruction more than eight times since, as far as a compiler unrolls. An atomic is one by
//                 itself, and so is the first wait for asynchronous copies after there were none under way. Arithmetic
//                 between two loads that makes the second wait for the first, other than of a pointer, is not seen.
//   remote trips  of a thread to the shared memory of its cluster's other blocks: the first access there, and the first
//                 since a store elsewhere, a barrier, collective, fence, atomic or wait.
//   branches      of a step: a launch waits for the one before it on its branch, and for those that the branch was made
//                 to wait for. They run one after the other all the same, each branch's when the step waits for it, and
//                 so the cache has them in that order.
//   loop          what a thread does from its first asynchronous copy until it waits for all of them: the loop along k
//                 of a product. Each wait there that has copies to wait for is a step.
// Of round trips, barriers and the like a launch has those of the thread with the most.
#ifdef FASTGAN_COUNT
#include "count.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "count_record.h"
#include "engine.h"

namespace simt::count {

namespace {

constexpr int unrolled = 8;                 // loads of one instruction under way at a time
constexpr uintptr_t behind_pointer = 4096;  // bytes

enum class Kind : uint8_t { global_read, global_write, shared_read, shared_write, atomic, copy };

struct Entry {
  const void* from;
  uintptr_t p;
  uint32_t bytes;
  uint16_t pieces;  // as g++ has split it
  Kind kind;
  bool in_loop;
  uint8_t lane = 0;
};

struct ThreadCounts {
  Path path;
  bool in_loop = false, loading = false, shared_loading = false, remote_loading = false;
  std::vector<std::pair<const void*, int>> loads;  // since a round trip began: how often each instruction
  std::vector<uintptr_t> pointers;                 // that have been loaded since
  std::vector<Entry> entries;                      // since the block's last barrier

  void stop_loading() { loading = shared_loading = remote_loading = false; }
};

bool watches = false;

}  // namespace

struct Counts {
  std::vector<ThreadCounts> threads;
};

namespace {

ThreadCounts* mine() {
  if (!watches || !in_fiber || current == nullptr || current->in_model > 0) return nullptr;
  return &current->block->counts->threads[size_t(current->number)];
}

// What the lanes of a warp do at once.
struct Instruction {
  Kind kind;
  bool in_loop;
  std::vector<Entry> lanes;
};

// Returns the sectors that it touches, in order.
std::vector<uint64_t> count_global(const Instruction& one, Traffic& to) {
  std::vector<uint64_t> sectors, starts;
  std::vector<std::pair<uintptr_t, uintptr_t>> spans;
  uint32_t widest = 0;
  int pieces = 1;
  for (const Entry& e : one.lanes) {
    for (uint64_t s = e.p / sector_bytes; s <= (e.p + e.bytes - 1) / sector_bytes; ++s) sectors.push_back(s);
    starts.push_back(e.p / sector_bytes);
    spans.emplace_back(e.p, e.p + e.bytes);
    widest = std::max(widest, e.bytes);
    pieces = std::max(pieces, int(e.pieces));
  }
  const auto unique = [](auto& list) {
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
  };
  unique(sectors), unique(starts);
  std::sort(spans.begin(), spans.end());
  uintptr_t bytes = 0, end = 0;
  for (const auto& [from, to_] : spans) {
    if (to_ > std::max(end, from)) bytes += to_ - std::max(end, from);
    end = std::max(end, to_);
  }
  ++to.instructions[widest > 8 ? 2 : widest > 4 ? 1 : 0];
  to.requested += int64_t(sectors.size());
  to.needed += int64_t((bytes + sector_bytes - 1) / sector_bytes);
  to.split += pieces > 1 ? int64_t(starts.size()) * pieces : int64_t(sectors.size());
  const bool writes = one.kind == Kind::global_write || one.kind == Kind::atomic;
  for (const uint64_t s : sectors) touch(s, writes);
  return sectors;
}

void count_copy(const Instruction& one) {
  Record& to = record();
  int64_t wavefronts = 0;
  uint64_t line = ~uint64_t{0};
  for (const uint64_t s : count_global(one, to.copied)) {
    const uint64_t its = s * sector_bytes / line_bytes;
    wavefronts += its != line ? 2 : 1;
    line = its;
  }
  ++to.shared_accesses;
  to.wavefronts[one.in_loop] += wavefronts;
  to.least[one.in_loop] += wavefronts;
  to.copy_wavefronts += wavefronts;
}

// Of lanes that have their turn together: wavefronts, and the least they could be.
std::pair<int64_t, int64_t> wavefronts_of(const std::vector<Entry>& lanes) {
  std::array<std::vector<uintptr_t>, 32> words;
  size_t different = 0, most = 0;
  for (const Entry& e : lanes)
    for (uintptr_t word = e.p / 4; word <= (e.p + e.bytes - 1) / 4; ++word) {
      auto& bank = words[word % 32];
      if (std::find(bank.begin(), bank.end(), word) != bank.end()) continue;
      bank.push_back(word);
      ++different;
      most = std::max(most, bank.size());
    }
  return {int64_t(most), int64_t((different + 31) / 32)};
}

void count_shared(const Instruction& one) {
  const bool is_wide = std::any_of(one.lanes.begin(), one.lanes.end(), [](const Entry& e) { return e.bytes == 16; });
  std::array<std::vector<Entry>, 2> turns;
  for (const Entry& e : one.lanes) turns[is_wide && e.lane >= 16].push_back(e);
  int64_t wavefronts = 0, least = 0;
  for (const std::vector<Entry>& lanes : turns) {
    const auto [most, fewest] = wavefronts_of(lanes);
    wavefronts += most, least += fewest;
  }
  Record& to = record();
  ++to.shared_accesses;
  to.wavefronts[one.in_loop] += wavefronts;
  to.least[one.in_loop] += least;
  to.ways = std::max(to.ways, (wavefronts + least - 1) / least);
  if (one.in_loop && one.kind == Kind::shared_read)
    for (const Entry& e : one.lanes) to.vectors += e.bytes == 16;
}

void count(Instruction& one) {
  // Parts that are no vector after all are as many instructions.
  const auto is_vector = [](const Entry& e) {
    return e.pieces == 1 || ((e.bytes == 8 || e.bytes == 16) && e.p % e.bytes == 0);
  };
  if (!std::all_of(one.lanes.begin(), one.lanes.end(), is_vector)) {
    int most = 1;
    for (const Entry& e : one.lanes) most = std::max(most, int(e.pieces));
    for (int piece = 0; piece < most; ++piece) {
      Instruction part{one.kind, one.in_loop, {}};
      for (const Entry& e : one.lanes)
        if (piece < e.pieces) {
          const uint32_t bytes = e.bytes / e.pieces;
          part.lanes.push_back({e.from, e.p + uintptr_t(piece) * bytes, bytes, 1, e.kind, e.in_loop, e.lane});
        }
      count(part);
    }
    return;
  }
  switch (one.kind) {
    case Kind::global_read:
      count_global(one, record().read);
      return;
    case Kind::global_write:
    case Kind::atomic:
      count_global(one, record().written);
      return;
    case Kind::copy:
      return count_copy(one);
    case Kind::shared_read:
    case Kind::shared_write:
      return count_shared(one);
  }
}

// Puts the lanes' accesses side by side and counts them.
void count_warp(Counts& counts, size_t first) {
  const size_t end = std::min(first + 32, counts.threads.size());
  std::vector<Instruction> instructions;
  std::unordered_map<const void*, std::vector<size_t>> places;
  for (size_t t = first; t < end; ++t) {
    std::unordered_map<const void*, size_t> times;
    size_t expected = 0;  // most lanes do the same in the same order
    for (Entry& e : counts.threads[t].entries) {
      e.lane = uint8_t(t - first);
      auto& there = places[e.from];
      const size_t time = times[e.from]++;
      if (time == there.size()) {
        there.push_back(instructions.size());
        instructions.push_back({e.kind, e.in_loop, {}});
      }
      expected = there[time];
      instructions[expected].lanes.push_back(e);
    }
    counts.threads[t].entries.clear();
  }
  for (Instruction& one : instructions) count(one);
}

void count_block(Counts& counts) {
  for (size_t first = 0; first < counts.threads.size(); first += 32) count_warp(counts, first);
}

// Not global memory: the fiber's stack, and the model's own.
bool is_private(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const std::function<void()>& kernel = current->block->launch->kernel;
  return address - reinterpret_cast<uintptr_t>(current->stack) < stack_bytes ||
         address - reinterpret_cast<uintptr_t>(current) < sizeof(Thread) || p == &current ||
         address - reinterpret_cast<uintptr_t>(&kernel) < sizeof(kernel);
}

bool is_in_shared(const Block& block, const void* p) {
  const auto* byte = static_cast<const unsigned char*>(p);
  return byte >= block.dynamic - red_zone && byte < block.statics + static_slots * static_slot;
}

// Of another block of the cluster.
bool is_in_peer(const void* p) {
  if (current->block->cluster == nullptr) return false;
  for (const Block* peer : current->block->cluster->blocks)
    if (peer != current->block && is_in_shared(*peer, p)) return true;
  return false;
}

void start_trip(ThreadCounts& t) {
  t.loading = true;
  ++t.path.trips[t.in_loop];
  t.loads.clear();
  t.pointers.clear();
}

// Whether it begins a round trip.
bool load(ThreadCounts& t, uintptr_t p, size_t bytes, const void* from) {
  bool waits = !t.loading;
  for (const uintptr_t pointer : t.pointers) waits = waits || p - pointer < behind_pointer;
  auto seen = std::find_if(t.loads.begin(), t.loads.end(), [&](const auto& l) { return l.first == from; });
  if (seen != t.loads.end() && seen->second >= unrolled) waits = true;
  if (waits) {
    start_trip(t);
    seen = t.loads.end();
  }
  if (seen == t.loads.end())
    t.loads.emplace_back(from, 1);
  else
    ++seen->second;
  if (bytes != sizeof(uintptr_t)) return waits;
  uintptr_t value;
  std::memcpy(&value, reinterpret_cast<const void*>(p), sizeof value);
  if (value > behind_pointer) t.pointers.push_back(value);
  return waits;
}

void append(ThreadCounts& t, const Entry& entry, bool alone = false) {
  std::vector<const void*>& places = record().places;
  if (places.size() < 24 && std::find(places.begin(), places.end(), entry.from) == places.end())
    places.push_back(entry.from);
  if (!alone && !t.entries.empty() && entry.kind != Kind::atomic && entry.kind != Kind::copy) {
    Entry& last = t.entries.back();
    const bool is_next = last.kind == entry.kind && last.p + last.bytes == entry.p && last.from != entry.from &&
                         last.in_loop == entry.in_loop && last.p / 16 == (entry.p + entry.bytes - 1) / 16 &&
                         last.bytes / last.pieces == entry.bytes;
    if (is_next) {
      last.bytes += entry.bytes;
      ++last.pieces;
      return;
    }
  }
  ++t.path.accesses[t.in_loop];
  t.entries.push_back(entry);
}

}  // namespace

// ---- what the engine and tsan.cpp call ----

void start_launch(const Launch& launch, bool on_fibers) {
  watches = on_fibers;
  Record& to = add_record();
  to.name = launch.name, to.launch = &launch;
  to.blocks = launch.block_count(), to.threads = launch.thread_count();
  to.shared_bytes = int64_t(launch.shared_bytes), to.cooperative = launch.together.cooperative;
  if (launch.together.clustered) to.cluster = int64_t(launch.blocks.y);
}

void end_launch() {
  watches = false;
  record().launch = nullptr;
}

void continue_branch(const void* branch, const std::set<size_t>& after) {
  branches.now = branch;
  branches.after[branch].insert(after.begin(), after.end());
}

std::set<size_t> last_launches(const void* branch) { return branches.after[branch]; }

void start_block(Block& block) {
  if (!watches) return;
  block.counts = std::make_shared<Counts>();
  block.counts->threads.resize(size_t(block.threads));
}

void end_block(Block& block) {
  if (!watches) return;
  count_block(*block.counts);
  for (const ThreadCounts& t : block.counts->threads) record().path.raise(t.path);
}

void access(const void* p, size_t bytes, Access kind, const void* from) {
  ThreadCounts* const t = mine();
  if (t == nullptr || bytes == 0 || is_private(p)) return;
  const InModel model;
  const bool is_remote = is_in_peer(p);
  const bool reads = kind == Access::read, is_shared = is_remote || is_in_shared(*current->block, p);
  const auto at = reinterpret_cast<uintptr_t>(p);
  bool alone = false;
  if (is_remote) {
    if (!t->remote_loading) ++t->path.remote_trips;
    t->remote_loading = true;
    ++t->path.remote_accesses;
    record().remote_bytes += int64_t(bytes);
  } else if (is_shared && reads) {
    if (!t->shared_loading) ++t->path.shared_trips[t->in_loop];
    t->shared_loading = true;
  } else if (reads) {
    alone = load(*t, at, bytes, from);
  } else {
    t->stop_loading();
  }
  const Kind of =
      is_shared ? (reads ? Kind::shared_read : Kind::shared_write) : (reads ? Kind::global_read : Kind::global_write);
  append(*t, {from, at, uint32_t(bytes), 1, of, t->in_loop}, alone);
}

void atomic(const void* p, size_t bytes, bool, bool, const void* from) {
  ThreadCounts* const t = mine();
  if (t == nullptr || is_private(p)) return;
  const InModel model;
  t->stop_loading();
  if (is_in_shared(*current->block, p)) {
    append(*t, {from, reinterpret_cast<uintptr_t>(p), uint32_t(bytes), 1, Kind::shared_write, t->in_loop});
    return;
  }
  ++t->path.atomics;
  append(*t, {from, reinterpret_cast<uintptr_t>(p), uint32_t(bytes), 1, Kind::atomic, t->in_loop});
}

void copy(const void* global, int bytes, int size, const void* from) {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  const InModel model;
  if (!t->in_loop) ++t->path.fills;
  t->in_loop = true;
  ++record().copies[size == 16];
  if (bytes > 0) append(*t, {from, reinterpret_cast<uintptr_t>(global), uint32_t(bytes), 1, Kind::copy, true});
  ++t->path.accesses[1];  // the other side
}

void wait(size_t copies, size_t pending) {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  t->stop_loading();
  if (copies > 0) ++t->path.steps;
  if (pending == 0) t->in_loop = false;
}

void fence() {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  t->stop_loading();
  ++t->path.fences;
}

void barrier() {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  t->stop_loading();
  ++t->path.barriers[t->in_loop];
}

void collective(const char* what) {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  if (std::strncmp(what, "mma", 3) == 0) {
    if (lane() == 0) ++record().products[what];
    return;
  }
  if (std::strncmp(what, "ldmatrix", 8) == 0) return;  // its reads follow
  t->stop_loading();
  ++t->path.collectives[t->in_loop];
}

void grid_barrier() {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  t->stop_loading();
  ++t->path.grid_barriers;
}

void cluster_barrier() {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  t->stop_loading();
  ++t->path.cluster_barriers;
}

void cluster_wait() {
  ThreadCounts* const t = mine();
  if (t == nullptr) return;
  t->stop_loading();
  ++t->path.cluster_waits;
}

void meet_cluster(const std::vector<Block*>& blocks) {
  if (!watches || !in_fiber) return;
  for (Block* block : blocks) count_block(*block->counts);
}

void meet_block() {
  if (watches && in_fiber) count_block(*current->block->counts);
}

}  // namespace simt::count
#endif
