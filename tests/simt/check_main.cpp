// kernel_checks [--few] [core | losses | layers | networks | adam | penalties | segmented | step | ...]: holds the
// kernels against plain loops; all of them by default.
#include "check.h"

namespace checks {
int failures = 0;
bool few = false;
}  // namespace checks

int main(int count, char** names) {
  const struct {
    const char* name;
    void (*check)();
  } all[] = {{"core", checks::check_core},
             {"losses", checks::check_losses},
             {"layers", checks::check_layers},
             {"networks", checks::check_networks},
             {"adam", checks::check_adam},
             {"penalties", checks::check_penalties},
             {"segmented", checks::check_segmented},
             {"step", checks::check_step},
             {"step_options", checks::check_step_options}};
  checks::few = count > 1 && std::string(names[1]) == "--few";
  for (const auto& one : all) {
    bool wanted = count == 1 + checks::few;
    for (int i = 1; i < count; ++i) wanted = wanted || std::string(names[i]) == one.name;
    if (!wanted) continue;
    ++checks::checks_begun;
    one.check();
    std::printf("%s: %d failures\n", one.name, checks::failures);
    std::fflush(stdout);
  }
  return checks::failures == 0 ? 0 : 1;
}
