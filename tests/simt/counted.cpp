// Kernels of which it is known what there is to count: prints the counts of each launch as JSON. In the build `count`.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/ptx.h"
#include "../../csrc/cuda/reduce.h"

extern "C" {
void simt_count_start(int cold);
void simt_count_note(const char* name, const char* note);
void simt_count_touch(const void* p, size_t bytes, int writes);
const char* simt_count_text();
}

namespace {

using namespace fastgan::cuda;

class Device : public fastgan::cuda::Context {
 public:
  Device() { multiprocessors = 4; }
  void* scratch(size_t) const override { return nullptr; }
  unsigned* counters() const override { return nullptr; }
};

constexpr int lanes = 32;

// ---- coalescing: the n-th lane at n * stride ----

void read_strided(const float* x, float* y, int stride) { y[threadIdx.x] = x[threadIdx.x * unsigned(stride)] + 1.0f; }
void write_strided(const float* x, float* y, int stride) { y[threadIdx.x * unsigned(stride)] = x[threadIdx.x] + 1.0f; }
void copy_vectors(const float* x, float* y) { store_16(y + 4 * threadIdx.x, load_16(x + 4 * threadIdx.x)); }

// ---- shared memory: the n-th lane at word n * stride ----

void shared_strided(float* y, int stride) {
  float* const words = reinterpret_cast<float*>(dynamic_shared());
  words[threadIdx.x * unsigned(stride)] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = words[threadIdx.x * unsigned(stride)];
}

// 16 bytes a thread: all to places of their own, then read from two places, and from sixteen.
void shared_vectors(float* y) {
  float* const words = reinterpret_cast<float*>(dynamic_shared());
  store_16(words + 4 * threadIdx.x, Bytes16{});
  __syncthreads();
  const Bytes16 two = load_16(words + 4 * (threadIdx.x / 16)), sixteen = load_16(words + 4 * (threadIdx.x % 16));
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += fastgan::float_of(two.word[i]) + fastgan::float_of(sixteen.word[i]);
  y[threadIdx.x] = sum;
}

// As far apart as two vectors are: each half of the warp comes to four banks.
void shared_vectors_apart(float* y) {
  float* const words = reinterpret_cast<float*>(dynamic_shared());
  store_16(words + 32 * threadIdx.x, Bytes16{});
  __syncthreads();
  y[threadIdx.x] = words[threadIdx.x];
}

// ---- round trips ----

struct Link {
  Link* next;
};
void follow(Link* const* first, Link** last) { *last = (*first)->next->next; }
void read_three(const float* a, const float* b, const float* c, float* sum) {
  const float x = a[threadIdx.x], y = b[threadIdx.x], z = c[threadIdx.x];
  sum[threadIdx.x] = x + y + z;
}
void read_and_write_three(const float* a, float* b) {
  for (int i = 0; i < 3; ++i) b[threadIdx.x + lanes * unsigned(i)] = a[threadIdx.x + lanes * unsigned(i)] + 1.0f;
}
void sum_of_twenty(const float* a, float* sum) {
  float total = 0;
  for (int i = 0; i < 20; ++i) total += a[threadIdx.x + lanes * unsigned(i)];
  sum[threadIdx.x] = total;
}
void take_tickets(unsigned* counter, unsigned* ticket) {
  const unsigned first = atomicAdd(counter, 1u);
  __threadfence();
  ticket[threadIdx.x] = first;
}

// ---- a loop of asynchronous copies: four steps, two under way ----

void pipeline(const float* x, const float* odd, float* y) {
  float* const stage = reinterpret_cast<float*>(dynamic_shared());
  const auto fetch = [&](int step) {
    if (step < 4) {
      cp_async_16(stage + step % 2 * 256 + 4 * int(threadIdx.x), x + step * 128 + 4 * int(threadIdx.x), 16);
      cp_async_4(stage + step % 2 * 256 + 128 + int(threadIdx.x), odd + step * 32 + int(threadIdx.x), 4);
    }
    cp_async_commit();
  };
  fetch(0);
  float sum = 0;
  for (int step = 0; step < 4; ++step) {
    fetch(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    const Bytes16 four = load_16(stage + step % 2 * 256 + 4 * int(threadIdx.x));
    for (const uint32_t word : four.word) sum += fastgan::float_of(word);
    __syncthreads();
  }
  cp_async_wait<0>();
  y[threadIdx.x] = sum;
}

// Rows of `pieces` pieces of 16 bytes, so many floats apart here and there.
void copy_rows(const float* x, int pieces, int apart, int shared_apart) {
  float* const stage = reinterpret_cast<float*>(dynamic_shared());
  const int row = int(threadIdx.x) / pieces, place = int(threadIdx.x) % pieces * 4;
  cp_async_16(stage + row * shared_apart + place, x + row * apart + place, 16);
  cp_async_commit();
  cp_async_wait<0>();
}

void sums_and_products(float* y) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_m16n8k8_tf32(d, a, b);
  mma_m16n8k8_tf32(d, a, b);
  mma_m16n8k16_bf16(d, a, b);
  const float sum = warp_sum(d[0] + 1.0f);
  __syncthreads();
  if (threadIdx.x == 0) y[0] = sum;
}

void two_grid_barriers(float* y) {
  y[threadIdx.x] = 1.0f;
  grid_barrier();
  grid_barrier();
}

void read_peer(float* y) {
  float* const words = reinterpret_cast<float*>(dynamic_shared());
  words[threadIdx.x] = 1.0f;
  cluster_barrier();
  y[lanes * blockIdx.y + threadIdx.x] = *peer_shared(words + threadIdx.x, 1 - blockIdx.y);
  cluster_barrier();
}

void cluster_in_halves(float* y) {
  cluster_barrier();
  cluster_arrive();
  y[lanes * blockIdx.y + threadIdx.x] = 1.0f;
  cluster_wait();
}

}  // namespace

int main() {
  const Device device;
  const Grid warp{dim3(1), dim3(lanes), 8192};
  alignas(128) static float x[4096], y[4096], z[4096], w[4096];
  static unsigned counter = 0, tickets[lanes];
  static Link links[3], *first = &links[0], *last = nullptr;
  links[0].next = &links[1], links[1].next = &links[2], links[2].next = &links[0];
  simt_count_start(1);
  launch(device, "coalesced", read_strided, warp, x, y, 1);
  launch(device, "every other", read_strided, warp, x, y, 2);
  launch(device, "a sector each", read_strided, warp, x, y, 8);
  launch(device, "written a sector each", write_strided, warp, x, y, 8);
  launch(device, "vectors", copy_vectors, warp, x, y);
  launch(device, "no conflict", shared_strided, warp, y, 1);
  launch(device, "one word", shared_strided, warp, y, 0);
  launch(device, "two ways", shared_strided, warp, y, 2);
  launch(device, "all ways", shared_strided, warp, y, 32);
  launch(device, "vectors of halves", shared_vectors, warp, y);
  launch(device, "vectors in conflict", shared_vectors_apart, warp, y);
  launch(device, "chain of three", follow, Grid{dim3(1), dim3(1)}, &first, &last);
  launch(device, "three at once", read_three, warp, x, z, w, y);
  launch(device, "three in turn", read_and_write_three, warp, x, y);
  launch(device, "twenty", sum_of_twenty, warp, x, y);
  launch(device, "tickets", take_tickets, warp, &counter, tickets);
  launch(device, "pipeline", pipeline, warp, x, z, y);
  launch(device, "two rows", copy_rows, warp, x, 16, 128, 72);
  launch(device, "eight rows", copy_rows, warp, x, 4, 100, 20);
  launch(device, "products", sums_and_products, warp, y);
  launch(device, "grid", two_grid_barriers, Grid{dim3(3), dim3(64), 0, true}, y);
  launch(device, "cluster", read_peer, Grid{dim3(1, 2), dim3(lanes), 8192, false, true}, y);
  launch(device, "cluster in halves", cluster_in_halves, Grid{dim3(1, 2), dim3(lanes), 8192, false, true}, y);
  // A branch of two launches, another that comes after the step's second, and what waits for both.
  const int first_branch = 1, other_branch = 2;
  launch(device, "before", read_strided, warp, x, y, 1);
  simt::continue_branch(&first_branch, simt::last_launches(nullptr));
  launch(device, "branch", read_strided, warp, x, y, 1);
  simt::continue_branch(nullptr);
  launch(device, "beside", read_strided, warp, x, y, 1);
  simt::continue_branch(&first_branch);
  launch(device, "branch goes on", read_strided, warp, x, y, 1);
  simt::continue_branch(&other_branch, simt::last_launches(nullptr));
  launch(device, "other branch", read_strided, warp, x, y, 1);
  for (const int* branch : {&first_branch, &other_branch}) simt::continue_branch(nullptr, simt::last_launches(branch));
  simt::continue_branch(&first_branch, simt::last_launches(nullptr));
  launch(device, "waits through the step", read_strided, warp, x, y, 1);
  simt::continue_branch(nullptr);
  launch(device, "joined", read_strided, warp, x, y, 1);
  const size_t sixty = size_t{60} << 20;
  char* const large = static_cast<char*>(std::aligned_alloc(128, sixty));
  simt_count_note("a megabyte", "{}");
  simt_count_touch(large, size_t{1} << 20, 0);
  simt_count_note("the same", "{}");
  simt_count_touch(large, size_t{1} << 20, 0);
  simt_count_note("sixty written", "{}");
  simt_count_touch(large, sixty, 1);
  simt_count_note("what it took the place of", "{}");
  simt_count_touch(large, size_t{1} << 20, 0);
  std::puts(simt_count_text());
  std::free(large);
  return 0;
}
