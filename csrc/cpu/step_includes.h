// What step_body.h needs, before any instruction set is chosen.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/logits_loss.h"
#include "simd.h"
#include "step.h"
#include "step_buffers.h"
