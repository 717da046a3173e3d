#include "check.h"

namespace checks {

void check_adam() {}

}  // namespace checks
