#include "team.h"

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#else
#include "../threads.h"
#endif

namespace fastgan::cpu {

int threads_for(double flops, double flops_a_thread) {
#ifdef _OPENMP
  const bool is_in_team = omp_in_parallel();
  const int most = omp_get_max_threads();
#else
  const bool is_in_team = cpu::is_in_team();
  const int most = most_threads();
#endif
  return is_in_team ? 1 : std::max(1, std::min(most, int(std::min(1e6, flops / flops_a_thread))));
}

int groups_for(int threads, int64_t panels) {
  for (int groups = threads; groups > 1; --groups) {
    if (threads % groups != 0 || groups > panels) continue;
    const int64_t most = (panels + groups - 1) / groups;
    if (double(panels) / double(most * groups) >= 0.8) return groups;
  }
  return 1;
}

}  // namespace fastgan::cpu
