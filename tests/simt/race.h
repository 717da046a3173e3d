// The race detector, in the build `race` only; elsewhere all of this is empty. See race.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace simt {

struct Block;

namespace race {

// An asynchronous copy writes at any time between `copy`, when it is started, and `copied`, when it has been waited
// for.
enum class Access : uint8_t { read, write, atomic, copy, copied };

#ifdef FASTGAN_RACE

struct Clocks;  // of a block
using BlockClocks = std::shared_ptr<Clocks>;

// FASTGAN_SIMT_RACE=0 in the environment switches it off, and so does the other engine.
void start_launch(bool on_fibers);
void start_block(Block& block);
// Of the current thread, by the instruction that returns to `from`. Where it races with one before it, the launch ends
// with a Fault.
void access(const void* p, size_t bytes, Access kind, const void* from);
// An atomic operation that reads, writes, or does both.
void atomic(const void* p, size_t bytes, bool reads, bool writes, const void* from);
void fence();
// What these threads of the current block did before comes before what any of them does from now on.
void meet(const std::vector<int>& threads);
void meet_lanes(unsigned mask);
void meet_block();
void meet_grid();
void meet_cluster(const std::vector<Block*>& blocks);

#else

struct BlockClocks {};
inline void start_launch(bool) {}
inline void start_block(Block&) {}
inline void access(const void*, size_t, Access, const void*) {}
inline void fence() {}
inline void meet(const std::vector<int>&) {}
inline void meet_lanes(unsigned) {}
inline void meet_block() {}
inline void meet_grid() {}
inline void meet_cluster(const std::vector<Block*>&) {}

#endif

}  // namespace race
}  // namespace simt
