// Kernels whose accesses are ordered as CUDA orders them, the same without, and what ThreadSanitizer sees as well.
#include <array>
#include <vector>

#include "faults.h"

namespace {

using namespace fastgan::cuda;
using namespace faults;

// Thread 32 of each block writes; of the last block to take a ticket, thread 5 reads what all wrote.
enum class Fence { none, block, device };
void last_block_sums(Fence writer, Fence reader) {
  std::array<int, 2> values{};
  unsigned counter = 0;
  int sum = 0;
  const auto fence = [](Fence kind) {
    if (kind == Fence::block) __threadfence_block();
    if (kind == Fence::device) __threadfence();
  };
  run("k", 2, 64, 0, false, [&] {
    FASTGAN_SHARED(bool, is_last);
    if (threadIdx.x == 32) values[blockIdx.x] = 1;
    fence(writer);
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(&counter, 1u) == 1;
    __syncthreads();
    if (!is_last) return;
    fence(reader);
    if (threadIdx.x == 5) sum = values[0] + values[1];
  });
  require(sum == 2, "the last block does not see what the others wrote");
}

// Two sums over the block, one after the other, in the same place.
void shared_place_again(bool barrier) {
  std::array<int, 64> sums{};
  run("k", 1, 64, 0, false, [&] {
    FASTGAN_SHARED(int[64], values);
    for (int pass = 1; pass <= 2; ++pass) {
      values[threadIdx.x] = pass;
      __syncthreads();
      sums[threadIdx.x] += values[threadIdx.x ^ 33];
      if (barrier) __syncthreads();
    }
  });
  require(!barrier || sums[40] == 3, "a sum is wrong");
}

// A shuffle brings the lanes together, and orders nothing.
void lanes_exchange(bool barrier) {
  std::array<int, 32> seen{};
  run("k", 1, 32, 0, false, [&] {
    FASTGAN_SHARED(int[32], values);
    values[threadIdx.x] = int(threadIdx.x);
    if (barrier)
      __syncwarp();
    else
      __shfl_sync(0xffffffffu, 1, 0);
    seen[threadIdx.x] = values[threadIdx.x ^ 1];
  });
  require(seen[6] == 7, "a lane does not see what another wrote");
}

void copies_for_others(bool barrier) {
  alignas(16) static const std::array<int, 128> source{7, 7, 7, 7};
  std::array<int, 32> seen{};
  run("k", 1, 32, 512, false, [&] {
    auto* there = reinterpret_cast<int*>(dynamic_shared());
    cp_async_16(there + threadIdx.x * 4, source.data() + threadIdx.x * 4, 16);
    cp_async_commit();
    cp_async_wait<0>();
    if (barrier) __syncthreads();
    seen[threadIdx.x] = there[threadIdx.x ^ 1];
  });
  require(!barrier || seen[1] == 7, "a copy is not there");
}

// The place is copied to again, while others may still read what was there.
void copies_over(bool barrier) {
  alignas(16) static const std::array<int, 128> source{};
  std::array<int, 32> seen{};
  run("k", 1, 32, 512, false, [&] {
    auto* there = reinterpret_cast<int*>(dynamic_shared());
    for (int pass = 0; pass < 2; ++pass) {
      cp_async_16(there + threadIdx.x * 4, source.data() + threadIdx.x * 4, 16);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      seen[threadIdx.x] += there[threadIdx.x];
      if (barrier) __syncthreads();
    }
  });
}

void matrix_rows(bool barrier) {
  run("k", 1, 32, 512, false, [&] {
    auto* rows = reinterpret_cast<uint16_t*>(dynamic_shared());
    for (int i = 0; i < 8; ++i) rows[threadIdx.x * 8 + i] = uint16_t(i);
    if (barrier) __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, rows + threadIdx.x * 8);
  });
}

// One word, of which each lane of a pair has half, or both the same half.
void halves_of_words(int distance) {
  std::vector<uint16_t> memory(64);
  run("k", 1, 32, 0, false, [&] { memory[threadIdx.x * distance] = uint16_t(distance == 0 ? 1 : threadIdx.x); });
  require(memory[3 * distance] == (distance == 0 ? 1 : 3), "half a word is lost");
}

// Of three warps the first writes and the second reads, after a barrier of the first with `partner`.
void two_of_three_warps(int partner) {
  std::array<int, 32> seen{};
  run("k", 1, 96, 0, false, [&] {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    FASTGAN_SHARED(int[32], values);
    if (warp == 0) values[lane] = lane;
    if (warp == 0 || warp == partner) named_barrier(1, 64);
    if (warp == 1) seen[lane] = values[31 - lane];
  });
  require(partner != 1 || seen[3] == 28, "a value before a named barrier is not seen after it");
}

void count_of_blocks(bool atomic) {
  int count = 0, seen = 0;
  run("k", 2, 32, 0, false, [&] {
    if (threadIdx.x == 0) atomicAdd(&count, 1);
    if (blockIdx.x == 0 && threadIdx.x == 1) seen = atomic ? atomicAdd(&count, 0) : count;
  });
  require(seen <= 2, "a count is wrong");
}

// What one block reads another changes.
void blocks_in_place(bool grid_barrier) {
  std::array<int, 2> values{1, 1};
  std::array<int, 2> seen{};
  run("k", 2, 32, 0, true, [&] {
    if (threadIdx.x == 0) seen[blockIdx.x] = values[1 - blockIdx.x];
    if (grid_barrier) fastgan::cuda::grid_barrier();
    if (threadIdx.x == 3) values[blockIdx.x] = 2;
  });
  require(!grid_barrier || seen[0] + seen[1] == 2, "a block sees what came after the barrier");
}

// The next launch comes after all of this one.
void launch_after_launch(bool other_launch) {
  std::array<int, 64> values{}, seen{};
  const auto write = [&] { values[blockIdx.x * 32 + threadIdx.x] = 1; };
  const auto read = [&] { seen[blockIdx.x * 32 + threadIdx.x] = values[63 - (blockIdx.x * 32 + threadIdx.x)]; };
  if (other_launch) {
    run("k", 2, 32, 0, false, write);
    run("k", 2, 32, 0, false, read);
  } else {
    run("k", 2, 32, 0, false, [&] { write(), read(); });
  }
  require(!other_launch || seen[5] == 1, "a launch does not see what the one before it wrote");
}

// Each block of a cluster adds up what all of them have; and what the barriers before and after are for.
void cluster_sums(bool barrier_before, bool barrier_after) {
  std::array<int, 6> sums{};
  run_clusters("k", dim3(2, 3), 64, 256, [&] {
    int* const own = reinterpret_cast<int*>(dynamic_shared()) + threadIdx.x;
    *own = int(threadIdx.x + 100 * blockIdx.y + 1000 * blockIdx.x);
    if (barrier_before) fastgan::cuda::cluster_barrier();
    int sum = 0;
    for (unsigned rank = 0; rank < 3; ++rank) sum += int(rank + 1) * *peer_shared(own, rank);
    if (threadIdx.x == 5) sums[blockIdx.x * 3 + blockIdx.y] = sum;
    if (barrier_after) fastgan::cuda::cluster_barrier();
  });
  require(sums[2] == 6 * 5 + 800 && sums[3] == 6 * 1005 + 800,
          "a block does not see what the others of its cluster wrote");
}

// The barrier at the end in halves: a block says that it has read what the others have, and waits for them to say so.
void cluster_halves(bool waits) {
  std::array<int, 2> seen{};
  run_clusters("k", dim3(1, 2), 32, 128, [&] {
    int* const own = reinterpret_cast<int*>(dynamic_shared()) + threadIdx.x;
    *own = int(blockIdx.y) + 1;
    fastgan::cuda::cluster_barrier();
    const int others = *peer_shared(own, 1 - blockIdx.y);
    if (waits) fastgan::cuda::cluster_arrive();
    if (threadIdx.x == 0) seen[blockIdx.y] = others;
    if (waits) fastgan::cuda::cluster_wait();
  });
  require(seen[0] == 2 && seen[1] == 1, "a block does not see what the other of its cluster wrote");
}

// The others' memory is written again, while they may still read what was there.
void cluster_exchange(bool barrier) {
  std::array<int, 2> seen{};
  run_clusters("k", dim3(1, 2), 32, 128, [&] {
    int* const own = reinterpret_cast<int*>(dynamic_shared()) + threadIdx.x;
    *own = 1;
    fastgan::cuda::cluster_barrier();
    if (threadIdx.x == 0) seen[blockIdx.y] = *peer_shared(own, 1 - blockIdx.y);
    if (barrier) fastgan::cuda::cluster_barrier();
    *own = 2;
    fastgan::cuda::cluster_barrier();
  });
  require(!barrier || seen[0] + seen[1] == 2, "a block sees what came after the barrier");
}

void removed_barrier() {
  std::array<int, 64> seen{};
  run("k", 1, 64, 0, false, [&] {
    FASTGAN_SHARED(int[64], values);
    values[threadIdx.x] = 1;
    seen[threadIdx.x] = values[threadIdx.x ^ 32];  // a __syncthreads() belongs between the two
  });
}
void missing_fence() {
  std::array<int, 2> values{};
  unsigned counter = 0;
  int sum = 0;
  run("k", 2, 32, 0, false, [&] {
    if (threadIdx.x != 0) return;
    values[blockIdx.x] = 1;
    if (atomicAdd(&counter, 1u) == 1) sum = values[0] + values[1];  // __threadfence() belongs on both sides
  });
}
void race_between_blocks() {
  int last = 0;
  run("k", 2, 32, 0, false, [&] {
    if (threadIdx.x == 0) last = int(blockIdx.x);
  });
}

}  // namespace

namespace faults {

const std::vector<Case> ordered = {
    {"fences_on_both_sides", [] { last_block_sums(Fence::device, Fence::device); }},
    {"barrier_before_reuse", [] { shared_place_again(true); }},
    {"lanes_with_syncwarp", [] { lanes_exchange(true); }},
    {"copy_read_after_a_barrier", [] { copies_for_others(true); }},
    {"copy_over_after_a_barrier", [] { copies_over(true); }},
    {"ldmatrix_after_a_barrier", [] { matrix_rows(true); }},
    {"halves_of_one_word", [] { halves_of_words(1); }},
    {"named_barrier_of_the_reader", [] { two_of_three_warps(1); }},
    {"count_read_by_an_atomic", [] { count_of_blocks(true); }},
    {"grid_barrier_between", [] { blocks_in_place(true); }},
    {"launches_between", [] { launch_after_launch(true); }},
    {"cluster_barriers_around", [] { cluster_sums(true, true); }},
    {"cluster_halves_at_the_end", [] { cluster_halves(true); }},
    {"cluster_barrier_before_reuse", [] { cluster_exchange(true); }},
};

const std::vector<Case> unordered = {
    {"no_fence_of_the_reader", [] { last_block_sums(Fence::device, Fence::none); }},
    {"no_fence_of_the_writer", [] { last_block_sums(Fence::none, Fence::device); }},
    {"fence_of_the_block_alone", [] { last_block_sums(Fence::block, Fence::block); }},
    {"no_barrier_before_reuse", [] { shared_place_again(false); }},
    {"lanes_without_syncwarp", [] { lanes_exchange(false); }},
    {"copy_read_without_a_barrier", [] { copies_for_others(false); }},
    {"copy_over_what_is_read", [] { copies_over(false); }},
    {"ldmatrix_without_a_barrier", [] { matrix_rows(false); }},
    {"the_same_half_of_a_word", [] { halves_of_words(0); }},
    {"named_barrier_of_others", [] { two_of_three_warps(2); }},
    {"plain_read_beside_an_atomic", [] { count_of_blocks(false); }},
    {"no_grid_barrier_between", [] { blocks_in_place(false); }},
    {"no_launch_between", [] { launch_after_launch(false); }},
    {"no_cluster_barrier_before", [] { cluster_sums(false, true); }},
    {"no_cluster_barrier_before_the_end", [] { cluster_sums(true, false); }},
    {"no_cluster_wait_at_the_end", [] { cluster_halves(false); }},
    {"no_cluster_barrier_before_reuse", [] { cluster_exchange(false); }},
};

const std::vector<Case> race = {{"removed_barrier", removed_barrier},
                                {"missing_fence", missing_fence},
                                {"race_between_blocks", race_between_blocks}};

}  // namespace faults
