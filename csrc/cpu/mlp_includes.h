// What mlp_body.h needs, before any instruction set is chosen.
#pragma once

#include "mlp_buffers.h"
#include "step_includes.h"
