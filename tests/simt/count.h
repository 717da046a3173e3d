// Counts of what decides a launch's time on hardware, in the build `count` only; elsewhere all of this is empty. See
// count.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

namespace simt {

struct Block;
struct Launch;

namespace count {

enum class Access : uint8_t { read, write, atomic };

#ifdef FASTGAN_COUNT

struct Counts;  // of a block
using BlockCounts = std::shared_ptr<Counts>;

// On the fast engine only.
void start_launch(const Launch& launch, bool on_fibers);
void end_launch();
void continue_branch(const void* branch, const std::set<size_t>& after);
std::set<size_t> last_launches(const void* branch);
void start_block(Block& block);
void end_block(Block& block);

// All of the rest is of the current thread. An access by the instruction that returns to `from`.
void access(const void* p, size_t bytes, Access kind, const void* from);
void atomic(const void* p, size_t bytes, bool reads, bool writes, const void* from);
// An asynchronous copy is started; a wait for so many copies, which leaves `pending` groups under way.
void copy(const void* global, int bytes, int size, const void* from);
void wait(size_t copies, size_t pending);
void fence();
void barrier();
void collective(const char* what);
void grid_barrier();
void cluster_barrier();
void cluster_wait();  // the second half of a barrier in halves
// All threads of the block, or of the blocks, are at a barrier.
void meet_block();
void meet_cluster(const std::vector<Block*>& blocks);

#else

struct BlockCounts {};
inline void start_launch(const Launch&, bool) {}
inline void end_launch() {}
inline void continue_branch(const void*, const std::set<size_t>&) {}
inline std::set<size_t> last_launches(const void*) { return {}; }
inline void start_block(Block&) {}
inline void end_block(Block&) {}
inline void copy(const void*, int, int, const void*) {}
inline void wait(size_t, size_t) {}
inline void fence() {}
inline void barrier() {}
inline void collective(const char*) {}
inline void grid_barrier() {}
inline void cluster_barrier() {}
inline void cluster_wait() {}
inline void meet_block() {}
inline void meet_cluster(const std::vector<Block*>&) {}

#endif

}  // namespace count
}  // namespace simt
