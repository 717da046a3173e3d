// The check of threads as a program of its own, for builds without OpenMP: with sanitizers, and with a fork, after
// which an emulator may start no threads.
#include "check.h"

int main() {
  checks::check_threads();
  std::printf("%lld compared, %lld failed\n", static_cast<long long>(checks::tally.compared),
              static_cast<long long>(checks::tally.failed));
  return checks::tally.failed == 0 ? 0 : 1;
}
