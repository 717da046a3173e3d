// What isa_kernels.h needs, before any instruction set is chosen. After it is, nothing
// that is not in the namespace of the instruction set may be left as a function of its own: the linker could choose
// that copy for processors without these instructions.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../core/logits_loss.h"
#include "../core/penalties.h"
#include "dispatch.h"
