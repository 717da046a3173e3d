#include "team.h"

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastgan::cpu {

int threads_for(double flops, double flops_a_thread) {
#ifdef _OPENMP
  if (omp_in_parallel()) return 1;
  return std::max(1, std::min(omp_get_max_threads(), int(std::min(1e6, flops / flops_a_thread))));
#else
  return 1;
#endif
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
