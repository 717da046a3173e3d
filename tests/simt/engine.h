// What the two engines share: a launch, its blocks, and the meetings at which their threads wait for each other.
#pragma once

#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "count.h"
#include "race.h"
#include "simt.h"

namespace simt {

struct Launch;

// A place where a known number of threads meet. The last to come acts for all; then all go on.
struct Meeting {
  int expected = 0;
  int arrived = 0;
  std::atomic<uint64_t> round{0};
  const char* what = nullptr;
  Site site;
  unsigned mask = 0;
  std::array<void*, 32> arguments;
  std::vector<int> threads;  // who came; for the race detector
  std::mutex mutex;          // of the thread engine
  std::condition_variable changed;
};

struct Warp {
  std::array<Meeting, 32> meetings;  // each at the lowest lane of its mask
};

constexpr unsigned largest_cluster = 8;  // on every device that has clusters
constexpr size_t static_slot = 4096;
constexpr int static_slots = 16;
constexpr size_t red_zone = 256;
constexpr unsigned char poison = 0xff;

// Blocks whose threads run at once, and may read each other's shared memory.
struct Cluster {
  Meeting meeting;
  std::vector<Block*> blocks;  // by rank

  // The next in the order in which blocks run.
  void add(Block* block, bool descending) { blocks.insert(descending ? blocks.begin() : blocks.end(), block); }
};

struct Block {
  Launch* launch = nullptr;
  Cluster* cluster = nullptr;  // or null
  int64_t number = 0;          // within the grid, x fastest
  int threads = 0;
  std::array<Meeting, 16> barriers;
  std::unique_ptr<Warp[]> warps;
  std::vector<unsigned char> memory;  // red zone, dynamic, red zone, then the static slots
  unsigned char* dynamic = nullptr;
  unsigned char* statics = nullptr;
  size_t dynamic_bytes = 0;
  std::array<std::atomic<const void*>, static_slots> keys{};
  std::array<std::atomic<size_t>, static_slots> sizes{};
  std::array<unsigned char, 1024> ends;  // of each thread, for the race detector: a place that it writes as it ends
  std::atomic<int> ended{0};             // threads
  race::BlockClocks clocks;
  count::BlockCounts counts;

  void prepare(Launch& of);   // fresh shared memory, all of it poison
  void check_memory() const;  // that nothing wrote into the red zones
};

struct Launch {
  const char* name;
  dim3 blocks, threads;
  size_t shared_bytes;
  Together together;
  const std::function<void()>& kernel;
  Meeting grid;
  bool descending = false;             // the order in which blocks run
  std::atomic<int> running{0};         // thread engine: threads that neither wait nor have ended
  std::atomic<bool> abandoned{false};  // after a fault

  int64_t block_count() const { return int64_t{blocks.x} * blocks.y * blocks.z; }
  int thread_count() const { return int(threads.x * threads.y * threads.z); }
  // How many blocks run at once: the blocks of a unit, which is the grid, a cluster or a block.
  int64_t unit_blocks() const { return together.cooperative ? block_count() : together.clustered ? blocks.y : 1; }
  int64_t unit_count() const { return block_count() / unit_blocks(); }
  // The place in the grid of a unit's block.
  int64_t index(int64_t unit, int64_t rank) const { return together.cooperative ? rank : unit + rank * blocks.x; }
  // Makes `thread` the number-th of the index-th block.
  void place(Thread& thread, Block& block, int64_t index, int number) const;
};

// A group of asynchronous copies is under way until it is waited for.
struct Copies {
  struct Copy {
    void* target;
    const void* source;
    int bytes, size;
    const void* from;  // the instruction after it
  };
  std::vector<Copy> list;
  std::vector<size_t> groups;  // where each closed group ends in the list
};

// The engines.
void run_fibers(Launch& launch);
void run_threads(Launch& launch);
// Waits until the meeting is over, having arrived without being the last. The thread engine comes with the meeting's
// mutex held.
void wait_in_fiber(Meeting& meeting, uint64_t round);
void wait_in_thread(Meeting& meeting, uint64_t round, std::unique_lock<std::mutex>& lock);

// Who waits where: the sentence of a deadlock.
std::string describe_wait(const std::vector<Meeting*>& meetings, int ended);

struct Abandoned {};  // thrown through the threads of a launch that had a fault

extern thread_local bool in_fiber;
constexpr size_t stack_bytes = 128 * 1024;  // of a fiber
// While one lives, the current thread is in the model.
struct InModel {
  InModel() { ++current->in_model; }
  ~InModel() { --current->in_model; }
  InModel(const InModel&) = delete;
};
std::string sentence(const std::string& what);  // of a fault of the current thread
// Ends the launch with an error of the current fiber, where nothing may be thrown.
[[noreturn]] void abandon_fiber(std::exception_ptr error);
void thread_ends();  // checks that the current thread left nothing undone

}  // namespace simt
