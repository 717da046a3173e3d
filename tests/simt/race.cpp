// A race detector for the fast engine: two accesses of the same byte, at least one of which writes, and not both
// atomic, must be ordered by what CUDA orders, in whatever order they happened to run here. The kernels are compiled
// with -fsanitize=thread, whose calls land in tsan.cpp instead of in ThreadSanitizer.
//
// Each thread has a clock, and a record of how much of every other thread's it comes after (vector clocks, and epochs
// in shadow memory: FastTrack, Flanagan and Freund, PLDI 2009). What orders:
//   a barrier, or __syncwarp    all before it, of its threads, with all after it. Other warp collectives order nothing:
//                               "these intrinsics do not imply a memory barrier" (CUDA C++ Programming Guide)
//   a barrier of the grid, the end of a launch    everything
//   __threadfence, a fence of sequential consistency at the device's scope (PTX ISA, Memory Consistency Model): where a
//       fence comes before an atomic write, and an atomic read that sees it, or a later one of the chain of
//       read-modify-writes, before another fence, all before the first comes before all after the second. Fence and
//       atomic need not be one thread's: a barrier may lie between. For were the second fence the first of the two in
//       the order of such fences, the atomic read would come before the write that it sees.
// An atomic operation without fences orders nothing.
#ifdef FASTGAN_RACE
#include "race.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "engine.h"
#include "memory.h"
#include "race_clocks.h"
#include "race_shadow.h"

namespace simt::race {

namespace {

bool watches = false;  // in this launch
bool is_kept = false;  // are kernels, to device memory

// What an atomic read of a place sees.
std::unordered_map<const void*, Elsewhere> released;

// An access under way: by whom, and where.
struct Now {
  Block& block;
  Clocks& clocks;
  const State& state;
  uint32_t number;  // of the block
  int thread;
  const Block* owner;  // of shared memory: this block or one of its cluster
  const void* p;
  size_t bytes;
  Access kind;
  const void* from;

  // Whether another block can have been there: shared memory is another's once its blocks have ended.
  bool is_there(uint32_t other) const {
    if (owner == nullptr || other == number) return true;
    const unsigned x = block.launch->blocks.x;
    return block.cluster != nullptr && other % x == number % x;
  }
  bool is_fresh(const Epoch& e) const { return e.phase == phase && is_there(e.block); }

  bool comes_after(uint32_t other_block, int other, uint32_t clock) const {
    if (other_block != number)
      return clock <= of_block(clocks.all.known.elsewhere, other_block, other) ||
             clock <= of_block(state.known.elsewhere, other_block, other);
    if (other == thread) return true;
    const Snapshot &all = clocks.all.known.here, &own = state.known.here;
    return (all != nullptr && clock <= (*all)[other]) || (own != nullptr && clock <= (*own)[other]);
  }
  bool comes_after(const Epoch& e) const { return !is_fresh(e) || comes_after(e.block, e.thread, e.clock); }

  // A thread of the group that this does not come after, or -1.
  int unordered(const Group& g) const {
    if (!is_there(g.block)) return -1;
    for (size_t t = g.threads._Find_first(); t < g.threads.size(); t = g.threads._Find_next(t))
      if (!comes_after(g.block, int(t), g.clock)) return int(t);
    return -1;
  }

  Epoch epoch() const { return {phase, number, clocks.own[thread], uint16_t(thread), kind}; }
};

// "reduce.h:32", with the line it was inlined into.
std::string line_of(const void* from) {
  Dl_info info;
  if (from == nullptr || dladdr(from, &info) == 0) return "?";
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", info.dli_fname,
                static_cast<const char*>(from) - 1 - static_cast<const char*>(info.dli_fbase));
  std::string text;
  if (FILE* lines = popen(command, "r")) {
    for (int found = 0; found < 2 && std::fgets(command, sizeof command, lines) != nullptr;) {
      std::string line(command);
      if (line.find("/usr/") == 0 || line.find("??") == 0) continue;
      line = line.substr(0, line.find_first_of(" \n"));
      text += (found++ == 0 ? "" : " in ") + line.substr(line.rfind('/') + 1);
    }
    pclose(lines);
  }
  return text.empty() ? "?" : text;
}

bool is_end(const Block& block, const unsigned char* p) {
  return p >= block.ends.data() && p < block.ends.data() + block.ends.size();
}

std::string place_of(const Now& now) {
  const auto* p = static_cast<const unsigned char*>(now.p);
  const auto at = [](ptrdiff_t offset) { return "byte " + std::to_string(offset) + " of "; };
  if (now.owner != nullptr) {
    const Block& block = *now.owner;
    const std::string whose = &block == &now.block ? "" : " of block " + std::to_string(block.number) + " of the grid";
    if (is_end(block, p)) return "whether threads of block " + std::to_string(block.number) + " of the grid run";
    if (p < block.statics) return at(p - block.dynamic) + "dynamic shared memory" + whose;
    const ptrdiff_t slot = (p - block.statics) / ptrdiff_t(static_slot);
    return at((p - block.statics) % ptrdiff_t(static_slot)) + "a static shared variable of " +
           std::to_string(block.sizes[slot].load()) + " bytes";
  }
  char text[32];
  std::snprintf(text, sizeof text, "%p", now.p);
  return std::string("global memory at ") + text;
}

[[noreturn]] void report(const Now& now, Access other_kind, uint32_t other_block, int other, const void* other_from) {
  const auto verb = [](Access kind) {
    switch (kind) {
      case Access::read:
        return "reads";
      case Access::write:
      case Access::copied:
        return "writes";
      case Access::atomic:
        return "atomically changes";
      case Access::copy:
        return "starts a copy to";
    }
    return "";
  };
  const dim3 grid = now.block.launch->blocks;
  const std::string index = "(" + std::to_string(other_block % grid.x) + "," +
                            std::to_string(other_block / grid.x % grid.y) + "," +
                            std::to_string(other_block / grid.x / grid.y) + ")";
  const bool copying = other_kind == Access::copy;
  const std::string who = "thread " + std::to_string(other) + " of block " + index;
  const std::string what =
      std::string("a race: it ") + verb(now.kind) + " " + place_of(now) + ", " + std::to_string(now.bytes) +
      " bytes (" + line_of(now.from) + "), " +
      (copying
           ? "where an asynchronous copy that " + who + " started (" + line_of(other_from) + ") has not been waited for"
           : "which " + who + " " + verb(other_kind) + " (" + line_of(other_from) + "), and nothing orders the two");
  abandon_fiber(std::make_exception_ptr(Fault(sentence(what))));
}

void check_group(const Now& now, const Groups& groups, Access kind) {
  if (groups.phase != phase) return;
  for (const Group* g = groups.first; g != nullptr; g = g->next)
    if (const int t = now.unordered(*g); t >= 0) report(now, kind, g->block, t, g->from);
}

// Adds the current thread, and drops what it comes after.
void add_to(Groups& groups, const Now& now) {
  const uint32_t clock = now.clocks.own[now.thread];
  if (groups.phase == phase) {
    for (Group* g = groups.first; g != nullptr; g = g->next)
      if (g->block == now.number && g->clock == clock) return void(g->threads.set(now.thread));
    for (Group** g = &groups.first; *g != nullptr;)
      if ((now.owner != nullptr || (*g)->block == now.number) && now.unordered(**g) < 0)
        *g = (*g)->next;
      else
        g = &(*g)->next;
  }
  Group mine{now.number, clock, now.from, nullptr, {}};
  mine.threads.set(now.thread);
  add(groups, mine);
}

void check(Cell& cell, const Now& now) {
  const Epoch mine = now.epoch();
  // The commonest: again what this thread did last.
  if (now.kind == Access::read && cell.read.phase == phase && cell.read.clock == mine.clock &&
      cell.read.thread == mine.thread && cell.read.block == mine.block && cell.readers.phase != phase)
    return;
  const Epoch& write = cell.write;
  if (now.kind == Access::write && write.kind == Access::write && write.phase == phase && write.clock == mine.clock &&
      write.thread == mine.thread && write.block == mine.block && cell.read.phase != phase &&
      cell.readers.phase != phase && cell.atomics.phase != phase)
    return;
  if (now.is_fresh(write) && (write.kind == Access::copy || !now.comes_after(write.block, write.thread, write.clock)))
    report(now, write.kind, write.block, write.thread, cell.write_from);
  if (now.kind != Access::atomic) check_group(now, cell.atomics, Access::atomic);
  if (now.kind == Access::read) {
    if (cell.readers.phase == phase) return add_to(cell.readers, now);
    if (!now.comes_after(cell.read)) {
      Group first{cell.read.block, cell.read.clock, cell.read_from, nullptr, {}};
      first.threads.set(cell.read.thread);
      add(cell.readers, first);
      return add_to(cell.readers, now);
    }
    cell.read = mine, cell.read_from = now.from;
    return;
  }
  if (!now.comes_after(cell.read)) report(now, Access::read, cell.read.block, cell.read.thread, cell.read_from);
  check_group(now, cell.readers, Access::read);
  if (now.kind == Access::atomic) return add_to(cell.atomics, now);
  // Whoever comes after this write comes after what it came after.
  cell.write = mine, cell.write_from = now.from;
  cell.read.phase = cell.readers.phase = cell.atomics.phase = never;
}

void check(const Now& now) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(now.p), end = begin + now.bytes;
  for (uintptr_t word = begin / 4 * 4; word < end; word += 4) {
    Cell& cell = shadow.word(word);
    const bool is_whole = word >= begin && word + 4 <= end;
    if (is_whole && cell.bytes_phase != phase) {
      check(cell, now);
      continue;
    }
    Cell* const bytes = split(cell);
    for (int i = 0; i < 4; ++i)
      if (word + i >= begin && word + i < end) check(bytes[i], now);
  }
}

// A copy that has been waited for is a write of now, and its beginning is forgotten.
void end_copy(const Now& now) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(now.p);
  for (uintptr_t word = begin; word < begin + now.bytes; word += 4) {
    Cell& cell = shadow.word(word);
    if (cell.write.kind == Access::copy) cell.write.phase = never;
    for (int i = 0; cell.bytes_phase == phase && i < 4; ++i)
      if (cell.bytes[i].write.kind == Access::copy) cell.bytes[i].write.phase = never;
  }
}

// Not what other threads could see: the fiber's stack, and the model's own.
bool is_private(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const std::function<void()>& kernel = current->block->launch->kernel;
  return address - reinterpret_cast<uintptr_t>(current->stack) < stack_bytes ||
         address - reinterpret_cast<uintptr_t>(current) < sizeof(Thread) || p == &current ||
         address - reinterpret_cast<uintptr_t>(&kernel) < sizeof(kernel);
}

Now access_now(const void* p, size_t bytes, Access kind, const void* from) {
  Block& block = *current->block;
  Clocks& clocks = *block.clocks;
  const auto* byte = static_cast<const unsigned char*>(p);
  const auto has = [&](const Block& b) {
    return (byte >= b.dynamic - red_zone && byte < b.statics + static_slots * static_slot) || is_end(b, byte);
  };
  const Block* owner = has(block) ? &block : nullptr;
  if (owner == nullptr && block.cluster != nullptr)
    for (const Block* peer : block.cluster->blocks)
      if (has(*peer)) owner = peer;
  return {.block = block,
          .clocks = clocks,
          .state = clocks.thread[current->number],
          .number = uint32_t(block.number),
          .thread = current->number,
          .owner = owner,
          .p = p,
          .bytes = bytes,
          .kind = kind,
          .from = from};
}

Clocks& clocks() { return *current->block->clocks; }

}  // namespace

// ---- what the engine and tsan.cpp call ----

void start_launch(bool on_fibers) {
  const char* const setting = std::getenv("FASTGAN_SIMT_RACE");
  watches = on_fibers && (setting == nullptr || std::strcmp(setting, "0") != 0);
  is_kept = on_fibers && are_kernels_kept_to_device_memory();
  ++phase;
  released.clear();
  pool.clear();
}

void start_block(Block& block) {
  if (!watches && !is_kept) return;
  block.clocks = std::make_shared<Clocks>();
  block.clocks->own.assign(block.threads, 1);
  block.clocks->thread.resize(block.threads);
}

// Where kernels are kept to device memory.
static void check_memory(const Now& now) {
  if (!is_kept || now.owner != nullptr || is_device(now.p)) return;
  abandon_fiber(std::make_exception_ptr(
      Fault(sentence(std::string(now.kind == Access::read ? "reads" : "writes") + " the host's memory, " +
                     std::to_string(now.bytes) + " bytes (" + line_of(now.from) + ")"))));
}

void access(const void* p, size_t bytes, Access kind, const void* from) {
  if (!(watches || is_kept) || !in_fiber || current->in_model > 0 || bytes == 0 || is_private(p)) return;
  const InModel model;
  Now now = access_now(p, bytes, kind, from);
  check_memory(now);
  if (!watches) return;
  if (kind == Access::copied) {
    end_copy(now);
    now.kind = Access::write;
  }
  check(now);
}

void atomic(const void* p, size_t bytes, bool reads, bool writes, const void* from) {
  if (!(watches || is_kept) || !in_fiber || current->in_model > 0 || is_private(p)) return;
  const InModel model;
  const Now now = access_now(p, bytes, Access::atomic, from);
  check_memory(now);
  if (!watches) return;
  check(now);
  Clocks& c = clocks();
  State& mine = c.thread[current->number];
  Elsewhere& there = released[p];
  Elsewhere seen = there;
  if (writes) {
    const Known fenced = joined(c.all.fenced, mine.fenced);
    Elsewhere own = fenced.elsewhere;
    if (fenced.here != nullptr)
      own = joined(own, std::make_shared<const Snapshots>(1, std::pair(uint32_t(current->block->number), fenced.here)));
    there = reads ? joined(there, own) : own;
  }
  if (!reads || seen == nullptr) return;
  mine.read = joined(mine.read, seen);
  c.any_thread = true;
}

void fence() {
  if (!watches) return;
  const InModel model;
  Clocks& c = clocks();
  State& mine = c.thread[current->number];
  const uint32_t number = uint32_t(current->block->number);
  if (const Elsewhere read = joined(c.all.read, mine.read); read != nullptr) {
    mine.known.elsewhere = joined(mine.known.elsewhere, read);
    for (const auto& [block, snapshot] : *read)
      if (block == number) mine.known.here = joined(mine.known.here, snapshot);
  }
  mine.fenced = joined(c.all.known, mine.known);
  Vector here = mine.fenced.here == nullptr ? Vector(c.own.size()) : *mine.fenced.here;
  here[current->number] = c.own[current->number]++;
  mine.fenced.here = std::make_shared<const Vector>(std::move(here));
  c.any_thread = true;
}

void meet(const std::vector<int>& threads) {
  if (!watches) return;
  Clocks& c = clocks();
  State state;
  for (const int t : threads) state.join(c.thread[t]);
  Vector here = state.known.here == nullptr ? Vector(c.own.size()) : *state.known.here;
  for (const int t : threads) here[t] = c.own[t]++;
  state.known.here = std::make_shared<const Vector>(std::move(here));
  for (const int t : threads) c.thread[t] = state;
  c.any_thread = true;
}

void meet_lanes(unsigned mask) {
  std::vector<int> threads;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) threads.push_back(current->number / 32 * 32 + l);
  meet(threads);
}

// What all threads of a block have after a barrier of it.
static State& met(Clocks& c) {
  if (c.any_thread)
    for (State& state : c.thread) {
      c.all.join(state);
      state = {};
    }
  c.any_thread = false;
  c.all.known.here = std::make_shared<const Vector>(c.own);  // nobody knows more of a thread than it does itself
  for (uint32_t& own : c.own) ++own;
  return c.all;
}

void meet_block() {
  if (watches) met(clocks());
}

void meet_grid() { ++phase; }

void meet_cluster(const std::vector<Block*>& blocks) {
  if (!watches) return;
  Elsewhere known, fenced, read;
  const auto add = [](Elsewhere& to, const Block& block, const Known& from) {
    to = joined(to, from.elsewhere);
    if (from.here == nullptr) return;
    to = joined(to, std::make_shared<const Snapshots>(1, std::pair(uint32_t(block.number), from.here)));
  };
  for (Block* block : blocks) {
    State& all = met(*block->clocks);
    add(known, *block, all.known), add(fenced, *block, all.fenced);
    read = joined(read, all.read);
  }
  for (Block* block : blocks) {
    State& all = block->clocks->all;
    all.known.elsewhere = known, all.fenced.elsewhere = fenced, all.read = read;
  }
}

}  // namespace simt::race
#endif
