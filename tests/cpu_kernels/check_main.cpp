// kernel_checks: holds the kernels of csrc/cpu against plain loops in float64, on the instructions that FASTGAN_ISA
// leaves. It prints what each check has compared.
#include "../../csrc/cpu/simd.h"
#include "check.h"

int main() {
  const struct {
    const char* name;
    void (*check)();
  } all[] = {{"threads", checks::check_threads},   {"losses", checks::check_losses},
             {"layers", checks::check_layers},     {"thin", checks::check_thin},
             {"networks", checks::check_networks}, {"segmented", checks::check_segmented},
             {"step", checks::check_step}};
  std::printf("instructions: %s\n", fastgan::cpu::isa_name());
  int64_t failed = 0;
  for (const auto& one : all) {
    checks::tally = {};
    checks::random_state = 7;
    one.check();
    std::printf("%s: %lld compared, %lld failed, the largest error is %.2f of its bound\n", one.name,
                static_cast<long long>(checks::tally.compared), static_cast<long long>(checks::tally.failed),
                checks::tally.largest);
    std::fflush(stdout);
    failed += checks::tally.failed + (checks::tally.compared == 0);
  }
  return failed == 0 ? 0 : 1;
}
