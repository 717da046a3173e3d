// What the files of the program `faults` share.
#pragma once

#include <vector>

#include "../../csrc/cuda/ptx.h"

namespace faults {

struct Case {
  const char* name;
  void (*run)();
};

inline void run(const char* name, dim3 blocks, dim3 threads, size_t shared, bool cooperative,
                const std::function<void()>& kernel) {
  simt::launch(name, blocks, threads, shared, {.cooperative = cooperative}, kernel);
}
inline void run_clusters(const char* name, dim3 blocks, dim3 threads, size_t shared,
                         const std::function<void()>& kernel) {
  simt::launch(name, blocks, threads, shared, {.clustered = true}, kernel);
}

// Throws where a kernel that keeps the rules computes something else than it should.
inline void require(bool good, const char* what) {
  if (!good) throw std::logic_error(what);
}

// Of faults_races.cpp: kernels whose accesses are ordered; the same without what orders them; and races that
// ThreadSanitizer sees as well, in any run.
extern const std::vector<Case> ordered, unordered, race;

}  // namespace faults
