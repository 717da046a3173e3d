// Kernels that break a rule of CUDA, one each, to show that the host model or a sanitizer says so; and, first, kernels
// that keep them. faults --list; faults NAME [--descending].
//
// "caught: ..." is the model's sentence. What just a sanitizer can see ends as the sanitizer ends a program; races also
// with a sentence in the build with the race detector.
#include "faults.h"

#include <array>
#include <cstdio>

#include "../../csrc/cuda/reduce.h"

namespace {

using namespace fastgan::cuda;
using namespace faults;

// ---- what is right ----

void shuffles_and_votes() {
  std::array<int, 64> down{}, up{}, flipped{}, first{};
  std::array<unsigned, 64> ballot{}, sum{};
  std::array<bool, 64> any{}, all{};
  run("shuffles", 1, 64, 0, false, [&] {
    const int i = threadIdx.x, l = i % 32;
    down[i] = __shfl_down_sync(0xffffffffu, i, 3);
    up[i] = __shfl_up_sync(0xffffffffu, i, 3);
    flipped[i] = __shfl_xor_sync(0xffffffffu, i, 5);
    ballot[i] = __ballot_sync(0xffffffffu, l % 2 == 1);
    any[i] = __any_sync(0xffffffffu, i == 40);
    all[i] = __all_sync(0xffffffffu, i < 32);
    sum[i] = __reduce_add_sync(0xffffffffu, unsigned(l));
    if (l < 16) first[i] = __shfl_sync(0xffffu, i, 7);  // half a warp by itself
  });
  for (int i = 0; i < 64; ++i) {
    const int l = i % 32;
    require(down[i] == (l + 3 < 32 ? i + 3 : i) && up[i] == (l >= 3 ? i - 3 : i) && flipped[i] == i / 32 * 32 + (l ^ 5),
            "a shuffle gives another lane's value");
    require(ballot[i] == 0xaaaaaaaau && any[i] == (i >= 32) && all[i] == (i < 32) && sum[i] == 496,
            "a vote or a sum is wrong");
    require(l >= 16 || first[i] == i / 32 * 32 + 7, "a shuffle of half a warp is wrong");
  }
}

void reductions_over_blocks() {
  std::vector<double> partial(7);
  unsigned counter = 0;
  double total = 0;
  run("sum", 7, 96, 0, false,
      [&] { store_launch_sum<96>(double(blockIdx.x * 96 + threadIdx.x), 2.0, partial.data(), &counter, &total); });
  require(total == 671.0 * 672.0 && counter == 0, "the sum over all blocks is wrong");
}

void barriers_and_atomics() {
  std::array<int, 128> seen{};
  int count = 0, most = 0, swapped = 0;
  run("barriers", 1, 128, 0, false, [&] {
    FASTGAN_SHARED(int[128], values);
    values[threadIdx.x] = int(threadIdx.x);
    if (threadIdx.x < 64)
      named_barrier(1, 64);
    else
      named_barrier(2, 64);
    seen[threadIdx.x] = values[threadIdx.x ^ 33];
    __syncthreads();
    atomicAdd(&count, 1);
    atomicMax(&most, int(threadIdx.x));
    atomicCAS(&swapped, 0, 5);
  });
  for (int i = 0; i < 128; ++i) require(seen[i] == (i ^ 33), "a value before a named barrier is not seen after it");
  require(count == 128 && most == 127 && swapped == 5, "an atomic operation is lost");
}

void whole_grids() {
  std::array<int, 5> mine{}, others{};
  run("grid", 5, 64, 0, true, [&] {
    if (threadIdx.x == 0) mine[blockIdx.x] = int(blockIdx.x) + 1;
    fastgan::cuda::grid_barrier();
    if (threadIdx.x == 0) others[blockIdx.x] = mine[(blockIdx.x + 1) % 5];
  });
  for (int i = 0; i < 5; ++i) require(others[i] == (i + 1) % 5 + 1, "a block does not see what another wrote");
}

void copies() {
  std::vector<uint32_t> source(4 * 32 * 8), sums(32);
  for (size_t i = 0; i < source.size(); ++i) source[i] = uint32_t(i);
  run("copies", 1, 32, 3 * 512, false, [&] {
    auto* stage = reinterpret_cast<uint32_t*>(dynamic_shared());
    const auto fetch = [&](int step) {
      if (step < 8)
        cp_async_16(stage + step % 3 * 128 + threadIdx.x * 4, source.data() + step * 128 + threadIdx.x * 4,
                    step == 7 ? 4 : 16);  // of the last, a word, and zeros
      cp_async_commit();
    };
    fetch(0);
    fetch(1);
    for (int step = 0; step < 8; ++step) {
      cp_async_wait<1>();
      __syncthreads();
      fetch(step + 2);
      for (int word = 0; word < 4; ++word) sums[threadIdx.x] += stage[step % 3 * 128 + (31 - threadIdx.x) * 4 + word];
    }
    cp_async_wait<0>();
  });
  for (uint32_t t = 0; t < 32; ++t) {
    uint32_t sum = 0;
    for (uint32_t step = 0; step < 8; ++step)
      for (uint32_t word = 0; word < (step == 7 ? 1u : 4u); ++word) sum += step * 128 + (31 - t) * 4 + word;
    require(sums[t] == sum, "a pipeline of asynchronous copies gives other values");
  }
}

// A 16 x k by k x 8 product of one mma, operands and result spread by the tables of the PTX ISA, against a plain loop.
template <class T, int k, class Mma>
void matrix_product(const Mma& mma) {
  float a[16][k], b[k][8], d[16][8];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < k; ++j) a[i][j] = float((i * 7 + j * 3) % 11 - 5);
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < 8; ++j) b[i][j] = float((i * 5 + j) % 13 - 6);
  const auto pack = [](float low, float high) -> uint32_t {
    if constexpr (sizeof(T) == 4) return fastgan::bits_of(low);
    T elements[2];
    fastgan::store(elements, fastgan::compute_t<T>(low));
    fastgan::store(elements + 1, fastgan::compute_t<T>(high));
    uint32_t bits;
    std::memcpy(&bits, elements, 4);
    return bits;
  };
  run("mma", 1, 32, 0, false, [&] {
    const int group = threadIdx.x >> 2, t = threadIdx.x % 4, p = k == 8 ? 1 : 2, h = k / 2;
    const auto at_a = [&](int row, int col) { return pack(a[row][col], a[row][std::min(col + 1, k - 1)]); };
    const auto at_b = [&](int row, int col) { return pack(b[row][col], b[std::min(row + 1, k - 1)][col]); };
    const uint32_t fragment_a[4] = {at_a(group, p * t), at_a(group + 8, p * t), at_a(group, p * t + h),
                                    at_a(group + 8, p * t + h)};
    const uint32_t fragment_b[2] = {at_b(p * t, group), at_b(p * t + h, group)};
    float sum[4] = {1, 2, 3, 4};
    mma(sum, fragment_a, fragment_b);
    d[group][2 * t] = sum[0] - 1;
    d[group][2 * t + 1] = sum[1] - 2;
    d[group + 8][2 * t] = sum[2] - 3;
    d[group + 8][2 * t + 1] = sum[3] - 4;
  });
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int l = 0; l < k; ++l) sum += a[i][l] * b[l][j];
      require(d[i][j] == sum, "an mma gives another product");
    }
}

void matrix_products() {
  matrix_product<float, 8>([](auto& d, auto& a, auto& b) { mma_m16n8k8_tf32(d, a, b); });
  matrix_product<fastgan::bfloat16, 16>([](auto& d, auto& a, auto& b) { mma_m16n8k16_bf16(d, a, b); });
  matrix_product<fastgan::float16, 16>([](auto& d, auto& a, auto& b) { mma_m16n8k16_f16(d, a, b); });
  require(
      to_tf32(1.0f + 0x1p-11f) == fastgan::bits_of(1.0f + 0x1p-10f) && to_tf32(-0x1.801p0f) == fastgan::bits_of(-1.5f),
      "tf32 rounds to nearest, ties away from zero");
}

void matrix_loads() {
  std::atomic<int> wrong{0};
  run("ldmatrix", 1, 32, 16 * 40 * 2, false, [&] {
    auto* m = reinterpret_cast<uint16_t*>(dynamic_shared());  // 16 rows of 16, 40 apart
    for (int i = threadIdx.x; i < 256; i += 32) m[i / 16 * 40 + i % 16] = uint16_t(i);
    __syncthreads();
    uint32_t plain[4], turned[4];
    const uint16_t* row = m + (threadIdx.x % 8 + threadIdx.x / 8 % 2 * 8) * 40 + threadIdx.x / 16 * 8;
    ldmatrix_x4(plain, row);
    ldmatrix_x4_trans(turned, row);
    const int group = threadIdx.x / 4, t = threadIdx.x % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto value = [&](int i, int j) { return uint32_t((matrix % 2 * 8 + i) * 16 + matrix / 2 * 8 + j); };
      wrong += plain[matrix] != (value(group, 2 * t) | value(group, 2 * t + 1) << 16);
      wrong += turned[matrix] != (value(2 * t, group) | value(2 * t + 1, group) << 16);
    }
  });
  require(wrong == 0, "ldmatrix gives other elements");
}

void fresh_memory_is_poison() {
  std::atomic<int> stale{0};
  for (int launch = 0; launch < 2; ++launch)
    run("poison", 3, 32, 128, false, [&] {
      FASTGAN_SHARED(float, one);
      auto* many = reinterpret_cast<float*>(dynamic_shared());
      stale += !std::isnan(many[threadIdx.x]);
      if (threadIdx.x == 0) {
        stale += !std::isnan(one);
        one = 0;
      }
      many[threadIdx.x] = 0;
    });
  require(stale == 0, "shared memory starts as what a block before it left");
}

const Case right[] = {{"shuffles_and_votes", shuffles_and_votes},
                      {"reductions_over_blocks", reductions_over_blocks},
                      {"barriers_and_atomics", barriers_and_atomics},
                      {"whole_grids", whole_grids},
                      {"copies", copies},
                      {"matrix_products", matrix_products},
                      {"matrix_loads", matrix_loads},
                      {"fresh_memory_is_poison", fresh_memory_is_poison}};

// ---- what the model catches ----

void one_warp(const std::function<void()>& kernel) { run("k", 1, 32, 256, false, kernel); }

// A cluster of two, whose first block does what it must not.
void two_blocks(const std::function<void(int*)>& first) {
  run_clusters("k", dim3(1, 2), 32, 256, [&] {
    int* const own = reinterpret_cast<int*>(dynamic_shared());
    if (blockIdx.y == 0) first(own);
  });
}

const Case wrong[] = {
    {"cluster_of_nine_blocks", [] { run_clusters("k", dim3(2, 9), 32, 0, [] {}); }},
    {"cluster_in_a_grid_with_z", [] { run_clusters("k", dim3(2, 2, 2), 32, 0, [] {}); }},
    {"cluster_barrier_without_clusters", [] { one_warp([] { fastgan::cuda::cluster_barrier(); }); }},
    {"cluster_barrier_of_one_block", [] { two_blocks([](int*) { fastgan::cuda::cluster_barrier(); }); }},
    {"cluster_arrive_without_clusters", [] { one_warp([] { fastgan::cuda::cluster_arrive(); }); }},
    {"cluster_wait_alone", [] { two_blocks([](int*) { fastgan::cuda::cluster_wait(); }); }},
    {"cluster_arrive_twice",
     [] { two_blocks([](int*) { fastgan::cuda::cluster_arrive(), fastgan::cuda::cluster_arrive(); }); }},
    {"cluster_barrier_within",
     [] { two_blocks([](int*) { fastgan::cuda::cluster_arrive(), fastgan::cuda::cluster_barrier(); }); }},
    {"peer_after_cluster_arrive",
     [] { two_blocks([](int* own) { fastgan::cuda::cluster_arrive(), peer_shared(own, 1); }); }},
    {"end_without_cluster_wait", [] { run_clusters("k", dim3(1, 2), 32, 0, [] { fastgan::cuda::cluster_arrive(); }); }},
    {"peer_without_clusters", [] { one_warp([] { peer_shared(dynamic_shared(), 0); }); }},
    {"peer_that_is_none", [] { two_blocks([](int* own) { peer_shared(own, 2); }); }},
    {"peer_of_no_shared_memory",
     [] {
       static int global = 0;
       two_blocks([](int*) { peer_shared(&global, 1); });
     }},
    {"peer_past_its_shared_memory", [] { two_blocks([](int* own) { peer_shared(own + 64, 1); }); }},
    {"peer_that_has_ended",
     [] {
       run_clusters("k", dim3(1, 2), 32, 256, [&] {
         fastgan::cuda::cluster_barrier();
         if (blockIdx.y == 1) peer_shared(dynamic_shared(), 0);
       });
     }},
    {"divergent_barrier", [] { one_warp([] { threadIdx.x < 16 ? __syncthreads() : __syncthreads(); }); }},
    {"barrier_after_exit",
     [] {
       one_warp([] {
         if (threadIdx.x > 0) __syncthreads();
       });
     }},
    {"shuffle_from_inactive_lane",
     [] {
       one_warp([] {
         if (threadIdx.x < 8) __shfl_sync(0xffu, 1, 9);
       });
     }},
    {"lane_not_in_its_mask", [] { one_warp([] { __shfl_sync(0xffffu, 1, 0); }); }},
    {"lane_that_never_comes",
     [] {
       one_warp([] {
         if (threadIdx.x > 0) __shfl_sync(0xffffffffu, 1, 1);
       });
     }},
    {"masks_that_differ", [] { one_warp([] { __ballot_sync(threadIdx.x == 0 ? 0x3u : 0xffffffffu, true); }); }},
    {"different_collectives",
     [] {
       one_warp([] { threadIdx.x == 0 ? __ballot_sync(0xffffffffu, true) : __reduce_add_sync(0xffffffffu, 1u); });
     }},
    {"misaligned_load",
     [] {
       alignas(16) static char bytes[64];
       one_warp([] { load_16(bytes + 4); });
     }},
    {"misaligned_store",
     [] {
       alignas(16) static char bytes[64];
       one_warp([] { store_16(bytes + 8, {}); });
     }},
    {"misaligned_copy",
     [] {
       alignas(16) static char bytes[64];
       one_warp([] { cp_async_16(dynamic_shared(), bytes + 4, 16); });
     }},
    {"copy_outside_shared",
     [] {
       alignas(16) static char bytes[64];
       one_warp([] { cp_async_16(dynamic_shared() + 256, bytes, 16); });
     }},
    {"copy_of_too_many_bytes",
     [] {
       alignas(16) static char bytes[64];
       one_warp([] { cp_async_4(dynamic_shared(), bytes, 8); });
     }},
    {"copy_never_waited_for",
     [] {
       alignas(16) static char bytes[64];
       one_warp([] {
         cp_async_16(dynamic_shared(), bytes, 16);
         cp_async_commit();
       });
     }},
    {"misaligned_ldmatrix",
     [] {
       one_warp([] {
         uint32_t r[4];
         ldmatrix_x4(r, dynamic_shared() + 2);
       });
     }},
    {"ldmatrix_outside_shared",
     [] {
       one_warp([] {
         uint32_t r[4];
         ldmatrix_x4(r, dynamic_shared() + 256);
       });
     }},
    {"grid_barrier_without_cooperation", [] { one_warp([] { fastgan::cuda::grid_barrier(); }); }},
    {"block_that_skips_the_grid_barrier",
     [] {
       run("k", 2, 32, 0, true, [] {
         if (blockIdx.x == 0) fastgan::cuda::grid_barrier();
       });
     }},
    {"named_barrier_id", [] { one_warp([] { named_barrier(16, 32); }); }},
    {"named_barrier_count", [] { one_warp([] { named_barrier(1, 20); }); }},
    {"too_many_threads", [] { run("k", 1, 1025, 0, false, [] {}); }},
    {"empty_grid", [] { run("k", 0, 32, 0, false, [] {}); }},
    {"shared_memory_unasked",
     [] {
       simt::launch("k", 1, 32, 48 * 1024, {.asks_for_shared = false}, [] {
         FASTGAN_SHARED(int, one);
         one = 1;
       });
     }},
    {"too_much_shared_memory", [] { run("k", 1, 32, 228 * 1024, false, [] {}); }},
    {"read_before_the_copy_is_there",
     [] {
       alignas(16) static float source[4];
       one_warp([] {
         auto* there = reinterpret_cast<float*>(dynamic_shared());
         if (threadIdx.x == 0) {
           there[0] = 0;
           cp_async_16(there, source, 16);
           cp_async_commit();
         }
         __syncthreads();
         if (std::isnan(there[0])) simt::fault("reads poison");
       });
     }},
};

// ---- what red zones catch, and AddressSanitizer where there is one ----

const Case out_of_bounds[] = {
    {"dynamic_shared_overrun",
     [] {
       one_warp([] {
         volatile unsigned char* p = dynamic_shared();
         p[256 + threadIdx.x] = 1;
       });
     }},
    {"static_shared_overrun",
     [] {
       one_warp([] {
         FASTGAN_SHARED(int[4], four);
         volatile int* p = four;
         p[4 + threadIdx.x] = 1;
       });
     }},
};

// ---- what AddressSanitizer alone catches ----

void global_overrun() {
  std::vector<float> memory(31);
  one_warp([&] {
    volatile float* p = memory.data();
    p[threadIdx.x] = 1;
  });
}
const Case address[] = {{"global_overrun", global_overrun}};

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "--list";
  if (count > 2) run("first", 1, 1, 0, false, [] {});  // so that the blocks of the next launch run in descending order
  const auto each = [&](const char* kind, const auto& cases) {
    for (const Case& one : cases) {
      if (name == "--list") std::printf("%s %s\n", kind, one.name);
      if (name != one.name) continue;
      try {
        one.run();
      } catch (const simt::Fault& fault) {
        std::printf("caught: %s\n", fault.what());
        std::exit(0);
      }
      std::printf("ran to its end\n");
      std::exit(0);
    }
  };
  each("right", right);
  each("wrong", wrong);
  each("bounds", out_of_bounds);
  each("address", address);
  each("race", race);
  each("ordered", ordered);
  each("unordered", unordered);
  return name == "--list" ? 0 : 2;
}
