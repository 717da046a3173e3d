#include "engine.h"

#include <cstdlib>
#include <cstring>

#include "memory.h"
#include "modelled.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FASTGAN_ASAN_POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define FASTGAN_ASAN_UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define FASTGAN_ASAN_POISON(p, n) ((void)0)
#define FASTGAN_ASAN_UNPOISON(p, n) ((void)0)
#endif

namespace simt {

thread_local bool in_fiber = false;

namespace {

std::atomic<int> chosen_engine{-1};
std::atomic<uint64_t> launches{0};
std::atomic<uint64_t> fence_word{0};

Engine engine() {
  if (chosen_engine < 0) {
    const char* name = std::getenv("FASTGAN_SIMT_ENGINE");
    chosen_engine = name != nullptr && std::string(name) == "threads" ? 1 : 0;
  }
  return chosen_engine == 1 ? Engine::threads : Engine::fibers;
}

std::string place_of(Site site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

bool same(Site a, Site b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Arrives at a meeting; the last to come runs act() and lets the others go.
template <class Act>
void meet(Meeting& m, int expected, const char* what, unsigned mask, Site site, void* argument, const Act& act) {
  const InModel model;
  std::unique_lock lock(m.mutex, std::defer_lock);
  if (!in_fiber) lock.lock();
  if (m.arrived == 0) {
    m.expected = expected;
    m.what = what;
    m.site = site;
    m.mask = mask;
  } else if (m.expected != expected || m.mask != mask || std::strcmp(m.what, what) != 0) {
    fault(std::string(what) + " (mask or count " + std::to_string(mask != 0 ? mask : unsigned(expected)) +
          ") meets threads that wait in " + m.what + " (" +
          std::to_string(m.mask != 0 ? m.mask : unsigned(m.expected)) + ") at " + place_of(m.site));
  } else if (!same(m.site, site)) {
    fault(std::string(what) + " at " + place_of(site) + " is divergent: others wait in the one at " + place_of(m.site));
  }
  if (m.arrived == 0) m.threads.clear();
  m.threads.push_back(current->number);
  if (mask != 0) m.arguments[lane()] = argument;
  if (++m.arrived < expected) {
    const uint64_t round = m.round.load(std::memory_order_relaxed);
    return in_fiber ? wait_in_fiber(m, round) : wait_in_thread(m, round, lock);
  }
  act();
  m.arrived = 0;
  m.round.fetch_add(1, std::memory_order_relaxed);
  if (!in_fiber) {
    current->block->launch->running.fetch_add(expected - 1, std::memory_order_relaxed);
    m.changed.notify_all();
  }
}

}  // namespace

void set_engine(Engine engine) { chosen_engine = engine == Engine::threads; }

std::string sentence(const std::string& what) {
  const InModel model;
  const Thread& t = *current;
  const auto index = [](dim3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  return "simt: kernel " + std::string(t.block->launch->name) + ", block " + index(t.block_index) + ", thread " +
         std::to_string(t.number) + ": " + what + ".";
}

void fault(const std::string& what) { throw Fault(sentence(what)); }

static void change_fence_word() { fence_word.fetch_add(1, std::memory_order_acq_rel); }

void block_fence() { change_fence_word(); }

void fence() {
  change_fence_word();
  race::fence();
  count::fence();
}

void launch(const char* name, dim3 blocks, dim3 threads, size_t shared_bytes, Together together,
            const std::function<void()>& kernel) {
  Launch launch{name, blocks, threads, shared_bytes, together, kernel, {}};
  const std::string about = "simt: kernel " + std::string(name) + ": ";
  const int64_t count = int64_t{threads.x} * threads.y * threads.z;
  if (launch.block_count() == 0 || count == 0) throw Fault(about + "a grid and a block must have threads.");
  if (count > 1024) throw Fault(about + "a block may have at most 1024 threads, not " + std::to_string(count) + ".");
  if (blocks.x > 0x7fffffffu || blocks.y > 0xffffu || blocks.z > 0xffffu)
    throw Fault(about + "a grid may have at most 2147483647 x 65535 x 65535 blocks.");
  if (shared_bytes > 227 * 1024)
    throw Fault(about + "a block may have at most 227 KB of dynamic shared memory, not " +
                std::to_string(shared_bytes) + " bytes.");
  if (together.clustered && (together.cooperative || blocks.z != 1 || blocks.y > largest_cluster))
    throw Fault(about + "a cluster may have at most 8 blocks, along y of a grid without z, of no cooperative launch.");
  launch.descending = launches.fetch_add(1, std::memory_order_relaxed) % 2 == 1;
  const DeviceWork work;
  const bool on_fibers = engine() == Engine::fibers;
  race::start_launch(on_fibers);
  count::start_launch(launch, on_fibers);
  if (on_fibers)
    run_fibers(launch);
  else
    run_threads(launch);
  count::end_launch();
}

void continue_branch(const void* branch, const Launches& after) { count::continue_branch(branch, after); }
Launches last_launches(const void* branch) { return count::last_launches(branch); }

void Launch::place(Thread& thread, Block& block, int64_t index, int number) const {
  if (descending) index = block_count() - 1 - index;
  if (number == 0) block.number = index;
  thread.in_model = 0;
  thread.block = &block;
  thread.number = number;
  thread.thread_index = {number % threads.x, number / threads.x % threads.y, number / (threads.x * threads.y)};
  thread.block_index = {unsigned(index % blocks.x), unsigned(index / blocks.x % blocks.y),
                        unsigned(index / blocks.x / blocks.y)};
  thread.block_dim = threads;
  thread.grid_dim = blocks;
}

void Block::prepare(Launch& of) {
  launch = &of;
  cluster = nullptr;
  ended = 0;
  if (warps == nullptr || threads != of.thread_count()) {
    threads = of.thread_count();
    warps = std::make_unique<Warp[]>((threads + 31) / 32);
  }
  race::start_block(*this);
  count::start_block(*this);
  dynamic_bytes = of.shared_bytes;
  const size_t room = (dynamic_bytes + 255) / 256 * 256;
  const size_t total = red_zone + room + red_zone + static_slots * static_slot + 256;
  if (memory.size() < total) memory.resize(total);
  FASTGAN_ASAN_UNPOISON(memory.data(), memory.size());
  unsigned char* start = memory.data();
  start += (256 - reinterpret_cast<uintptr_t>(start) % 256) % 256;
  std::memset(start, poison, red_zone + room + red_zone);
  if (statics != start + red_zone + room + red_zone) {
    statics = start + red_zone + room + red_zone;
    std::memset(statics, poison, static_slots * static_slot);
  }
  for (int slot = 0; slot < static_slots; ++slot) {
    if (keys[slot] != nullptr) std::memset(statics + slot * static_slot, poison, static_slot);
    keys[slot] = nullptr;
    sizes[slot] = 0;
  }
  dynamic = start + red_zone;
  FASTGAN_ASAN_POISON(start, red_zone);
  FASTGAN_ASAN_POISON(dynamic + dynamic_bytes, room - dynamic_bytes + red_zone);
  FASTGAN_ASAN_POISON(statics, static_slots * static_slot);
}

void Block::check_memory() const {
  FASTGAN_ASAN_UNPOISON(memory.data(), memory.size());
  const auto check = [&](const unsigned char* begin, const unsigned char* end, const char* what, ptrdiff_t size,
                         const unsigned char* base) {
    for (const unsigned char* p = begin; p < end; ++p)
      if (*p != poison)
        throw Fault("simt: kernel " + std::string(launch->name) + " wrote to byte " + std::to_string(p - base) +
                    " of " + what + " shared memory of " + std::to_string(size) + " bytes.");
  };
  check(dynamic - red_zone, dynamic, "dynamic", dynamic_bytes, dynamic);
  check(dynamic + dynamic_bytes, statics, "dynamic", dynamic_bytes, dynamic);
  for (int slot = 0; slot < static_slots; ++slot) {
    const unsigned char* base = statics + slot * static_slot;
    if (keys[slot] != nullptr) check(base + sizes[slot], base + static_slot, "static", sizes[slot], base);
  }
}

int device_multiprocessors() { return modelled.multiprocessors; }
int device_largest_cluster() { return modelled.largest_cluster; }
size_t device_shared_bytes() { return modelled.shared_bytes; }

unsigned char* dynamic_shared() { return current->block->dynamic; }

// AddressSanitizer reads a region's last shadow byte, then writes it: one thread at a time. The lock exists in that
// build only, so that it hides nothing from ThreadSanitizer.
static void open_static([[maybe_unused]] void* base, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  static std::mutex shadow;
  const std::lock_guard<std::mutex> lock(shadow);
#endif
  FASTGAN_ASAN_UNPOISON(base, size);
}

void* static_shared_bytes(const void* key, size_t size) {
  const InModel model;
  Block& block = *current->block;
  if (size > static_slot - 64) fault("a static shared variable may have at most 4032 bytes here");
  for (int slot = 0; slot < static_slots; ++slot) {
    const void* there = block.keys[slot].load(std::memory_order_relaxed);
    if (there == nullptr &&
        block.keys[slot].compare_exchange_strong(there, key, std::memory_order_relaxed, std::memory_order_relaxed)) {
      block.sizes[slot].store(size, std::memory_order_relaxed);
      there = key;
    }
    if (there != key) continue;
    size_t all = block.dynamic_bytes;
    for (int other = 0; other <= slot; ++other) all += block.sizes[other].load(std::memory_order_relaxed);
    if (all > 48 * 1024 && !block.launch->together.asks_for_shared)
      fault("has " + std::to_string(all) + " bytes of shared memory, over 48 KB, and has not asked for so much");
    void* const base = block.statics + slot * static_slot;
    open_static(base, size);
    return base;
  }
  fault("there are more than 16 static shared variables");
}

bool is_shared(const void* p, size_t bytes) {
  const InModel model;
  const Block& block = *current->block;
  const auto* begin = static_cast<const unsigned char*>(p);
  if (begin >= block.dynamic && begin + bytes <= block.dynamic + block.dynamic_bytes) return true;
  for (int slot = 0; slot < static_slots; ++slot) {
    const unsigned char* base = block.statics + slot * static_slot;
    if (begin >= base && begin + bytes <= base + block.sizes[slot].load(std::memory_order_relaxed)) return true;
  }
  return false;
}

void block_barrier(const char* what, int id, int threads, Site site) {
  Block& block = *current->block;
  if (id != 0 && (id < 1 || id > 15)) fault("a named barrier's id must be in 1..15, not " + std::to_string(id));
  if (id != 0 && (threads <= 0 || threads % 32 != 0 || threads > block.threads))
    fault("a named barrier's number of threads must be a multiple of 32 within the block, not " +
          std::to_string(threads));
  Meeting& barrier = block.barriers[id];
  count::barrier();
  meet(barrier, id == 0 ? block.threads : threads, what, 0, site, nullptr, [&] {
    if (barrier.expected == block.threads)
      race::meet_block(), count::meet_block();
    else
      race::meet(barrier.threads);
  });
}

void grid_barrier(Site site) {
  Launch& launch = *current->block->launch;
  if (!launch.together.cooperative) fault("grid_barrier needs a cooperative launch");
  change_fence_word();
  count::grid_barrier();
  meet(launch.grid, int(launch.block_count() * launch.thread_count()), "grid_barrier", 0, site, nullptr,
       [] { race::meet_grid(); });
  change_fence_word();
}

namespace {

void meet_cluster(const char* what, Site site) {
  Block& block = *current->block;
  if (block.cluster == nullptr) fault(std::string(what) + " needs a launch of clusters");
  Cluster& cluster = *block.cluster;
  meet(cluster.meeting, int(cluster.blocks.size()) * block.threads, what, 0, site, nullptr,
       [&] { race::meet_cluster(cluster.blocks), count::meet_cluster(cluster.blocks); });
}

}  // namespace

void cluster_barrier(Site site) {
  if (current->has_arrived) fault("cluster_barrier comes between cluster_arrive and cluster_wait");
  count::cluster_barrier();
  meet_cluster("cluster_barrier", site);
}

void cluster_arrive() {
  if (current->block->cluster == nullptr) fault("cluster_arrive needs a launch of clusters");
  if (current->has_arrived) fault("cluster_arrive comes again before cluster_wait");
  current->has_arrived = true;
}

void cluster_wait(Site site) {
  if (!current->has_arrived) fault("cluster_wait comes without cluster_arrive");
  current->has_arrived = false;
  count::cluster_wait();
  meet_cluster("cluster_wait", site);
}

__attribute__((noinline)) void* peer_shared(void* p, size_t bytes, unsigned rank) {
  const Block& block = *current->block;
  if (block.cluster == nullptr) fault("peer_shared needs a launch of clusters");
  if (rank >= block.cluster->blocks.size())
    fault("peer_shared asks for block " + std::to_string(rank) + " of a cluster of " +
          std::to_string(block.cluster->blocks.size()));
  auto* const own = static_cast<unsigned char*>(p);
  if (own < block.dynamic || own + bytes > block.dynamic + block.dynamic_bytes)
    fault("peer_shared asks for what does not lie in dynamic shared memory");
  Block& peer = *block.cluster->blocks[rank];
  if (&peer == &block) return p;
  if (current->has_arrived) fault("peer_shared comes after cluster_arrive, when the others may do as they like");
  race::access(peer.ends.data(), size_t(peer.threads), race::Access::read, __builtin_return_address(0));
  if (peer.ended.load(std::memory_order_relaxed) > 0)
    fault("peer_shared asks for the shared memory of block " + std::to_string(rank) +
          " of its cluster, which has ended");
  return peer.dynamic + (own - block.dynamic);
}

void meet_warp(const char* what, unsigned mask, void* argument, Collective all, Site site) {
  Block& block = *current->block;
  const int warp = current->number / 32, lanes = std::min(32, block.threads - warp * 32);
  if ((mask >> lane() & 1) == 0)
    fault(std::string(what) + " is called by lane " + std::to_string(lane()) + ", which is not in its mask " +
          std::to_string(mask));
  if (lanes < 32) mask &= (1u << lanes) - 1;  // there are no other lanes
  Meeting& meeting = block.warps[warp].meetings[__builtin_ctz(mask)];
  count::collective(what);
  meet(meeting, __builtin_popcount(mask), what, mask, site, argument, [&] {
    all(meeting.arguments.data(), mask);
    if (std::strcmp(what, "__syncwarp") == 0) race::meet_lanes(mask);
  });
}

std::string describe_wait(const std::vector<Meeting*>& meetings, int ended) {
  std::string text = "the threads wait for each other for ever: ";
  std::vector<std::pair<Meeting*, int>> counted;
  for (Meeting* m : meetings) {
    bool found = false;
    for (auto& [other, count] : counted)
      if (other == m) found = ++count > 0;
    if (!found) counted.push_back({m, 1});
  }
  for (size_t i = 0; i < counted.size() && i < 4; ++i)
    text += std::to_string(counted[i].second) + " of " + std::to_string(counted[i].first->expected) + " are in " +
            counted[i].first->what + " at " + place_of(counted[i].first->site) + ", ";
  return text + std::to_string(ended) + " have ended";
}

void thread_ends() {
  Block& block = *current->block;
  if (block.cluster != nullptr) {
    race::access(&block.ends[size_t(current->number)], 1, race::Access::write, nullptr);
    block.ended.fetch_add(1, std::memory_order_relaxed);
  }
  const InModel model;
  if (current->has_arrived) fault("ends between cluster_arrive and cluster_wait");
  if (current->copies != nullptr && !current->copies->list.empty())
    fault("ends with asynchronous copies that it has not waited for");
}

}  // namespace simt
