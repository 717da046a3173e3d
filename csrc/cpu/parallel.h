// Work cut into chunks whose bounds depend on the size alone, never on the number of threads: so sums taken chunk by
// chunk and added in order have the same bits on any number of threads.
//
// OpenMP directly, which is what torch's own parallel_for is: the runtime is the one torch has loaded, and
// torch.set_num_threads governs it. Where the compiler has none, a team of the standard library's threads (threads.h).
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#else
#include "threads.h"
#endif

namespace fastgan::cpu {

// Elements a chunk. Float sums within one chunk have at most 4096 / 16 terms in a lane.
constexpr int64_t chunk_size = 4096;

// Less work than this is not worth waking a second thread for (about 5 us there and back): counted in elements that
// cost about a nanosecond each, such as one with an exponential.
constexpr int64_t parallel_grain = 32768;

inline int64_t chunk_count(int64_t n) { return (n + chunk_size - 1) / chunk_size; }

// Calls work(thread, threads) in that many threads, or in one where the runtime gives fewer.
template <class F>
void in_parallel(int threads, const F& work) {
#ifdef _OPENMP
  if (threads > 1) {
    bool all = false;
#pragma omp parallel num_threads(threads)
    {
      if (omp_get_num_threads() == threads) {
        work(omp_get_thread_num(), threads);
        if (omp_get_thread_num() == 0) all = true;
      }
    }
    if (all) return;
  }
#else
  const auto call = [](const void* f, int thread, int threads) { (*static_cast<const F*>(f))(thread, threads); };
  if (threads > 1 && run_team(threads, call, &work)) return;
#endif
  work(0, 1);
}

// f(chunk) for chunk in [0, count), in parallel where all of them together are more work than the grain.
template <class F>
void for_chunks(int64_t count, int64_t work, const F& f) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static) if (work > parallel_grain && count > 1)
  for (int64_t chunk = 0; chunk < count; ++chunk) f(chunk);
#else
  const bool is_alone = work <= parallel_grain || count <= 1 || is_in_team();
  in_parallel(is_alone ? 1 : int(std::min<int64_t>(count, most_threads())), [&](int64_t thread, int64_t threads) {
    for (int64_t chunk = count * thread / threads; chunk < count * (thread + 1) / threads; ++chunk) f(chunk);
  });
#endif
}

// f(begin, end) for consecutive pieces of [0, n).
template <class F>
void for_ranges(int64_t n, const F& f) {
  for_chunks(chunk_count(n), n, [&](int64_t chunk) { f(chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size)); });
}

}  // namespace fastgan::cpu
