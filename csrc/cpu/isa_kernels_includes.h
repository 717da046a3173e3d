// What isa_kernels.h needs, before any instruction set is chosen. Nothing of the standard library may be instantiated
// after it is: the linker could choose that copy for processors without these instructions.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/logits_loss.h"
#include "dispatch.h"
