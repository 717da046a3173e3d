// The device that the bindings take the host model for (csrc/bindings/scopes.h). The build `count` makes it an H100.
#pragma once

#include <cstddef>

namespace simt {

struct Device {
  int multiprocessors = 4;
  size_t shared_bytes = 99 * 1024;  // a block: of sm_86 and sm_120, the least among the architectures supported
  int largest_cluster = 8;
};
inline Device modelled;

}  // namespace simt
