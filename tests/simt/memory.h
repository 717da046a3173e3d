// Device memory that the host may not touch: an arena that is closed but while the device works. See memory.cpp.
#pragma once

#include <cstddef>

namespace simt {

// At least `bytes` of it, aligned to 256, all of it 0xff.
void* device_allocate(size_t bytes);
void device_free(void* p);
bool is_device(const void* p);

// From now on kernels may read and write device memory alone, where the build sees their accesses (that of `race`).
void keep_kernels_to_device_memory();
bool are_kernels_kept_to_device_memory();

// For its length the device works: the arena is open.
class DeviceWork {
 public:
  DeviceWork();
  ~DeviceWork();
  DeviceWork(const DeviceWork&) = delete;
};

}  // namespace simt
