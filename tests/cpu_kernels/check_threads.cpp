#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "../../csrc/cpu/parallel.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::cpu::chunk_size;
using fastgan::cpu::for_chunks;
using fastgan::cpu::in_parallel;

constexpr int64_t chunks = 40;

// Whether each chunk was given out once.
bool gives_out_each_chunk() {
  std::vector<int> given(chunks, 0);
  for_chunks(chunks, chunks * chunk_size, [&](int64_t chunk) { ++given[chunk]; });
  return given == std::vector<int>(chunks, 1);
}

void expect_true(bool good, const std::string& what) {
  ++tally.compared;
  if (!good) fail(what);
}

}  // namespace

// Parallel regions one after the other, from several callers at once, inside each other, and after a fork.
void check_threads() {
#ifndef _OPENMP
  fastgan::cpu::set_most_threads([] { return 4; });
#endif
  for (int i = 0; i < 500; ++i) expect_true(gives_out_each_chunk(), "each chunk is given out once");
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int k = 0; k < 3; ++k)
    callers.emplace_back([&] {
      for (int i = 0; i < 100; ++i) wrong += !gives_out_each_chunk();
    });
  for (std::thread& caller : callers) caller.join();
  expect_true(wrong == 0, "several callers get each chunk once");
  for (int i = 0; i < 100; ++i) {
    std::atomic<int> seen{0}, in_force{0};
    in_parallel(2 + i % 3, [&](int thread, int threads) {
      seen += 1 << thread, in_force = threads;
      wrong += !gives_out_each_chunk();
    });
    expect_true(seen == (1 << in_force) - 1 && wrong == 0, "each thread comes once, and may have regions of its own");
  }
#if !defined(_OPENMP) && !defined(__aarch64__)  // no runtime of OpenMP survives a fork, nor qemu's of threads
  const pid_t child = fork();
  if (child == 0) _exit(gives_out_each_chunk() ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  expect_true(status == 0, "a forked process has a team of its own");
#endif
}

}  // namespace checks
