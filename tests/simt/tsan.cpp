// What g++ -fsanitize=thread calls before each access: it goes to the race detector in the build `race`, and is counted
// in the build `count`.
#if defined(FASTGAN_RACE) || defined(FASTGAN_COUNT)
#include <atomic>

#ifdef FASTGAN_RACE
#include "race.h"
namespace watcher = simt::race;
#else
#include "count.h"
namespace watcher = simt::count;
#endif

using watcher::Access;

#define FROM __builtin_return_address(0)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void __tsan_read_range(const void* p, size_t bytes) { watcher::access(p, bytes, Access::read, FROM); }
void __tsan_write_range(const void* p, size_t bytes) { watcher::access(p, bytes, Access::write, FROM); }

#define ACCESSES(bytes)                                                                               \
  void __tsan_read##bytes(const void* p) { watcher::access(p, bytes, Access::read, FROM); }           \
  void __tsan_write##bytes(const void* p) { watcher::access(p, bytes, Access::write, FROM); }         \
  void __tsan_unaligned_read##bytes(const void* p) { watcher::access(p, bytes, Access::read, FROM); } \
  void __tsan_unaligned_write##bytes(const void* p) { watcher::access(p, bytes, Access::write, FROM); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

// The order that is asked for is CUDA's: relaxed.
#define READ_MODIFY_WRITE(bits, T, name)                             \
  T __tsan_atomic##bits##_##name(volatile T* p, T value, int) {      \
    watcher::atomic(const_cast<T*>(p), sizeof(T), true, true, FROM); \
    return __atomic_##name(p, value, __ATOMIC_RELAXED);              \
  }
#define COMPARE_EXCHANGE(bits, T, name, weak)                                                         \
  bool __tsan_atomic##bits##_compare_exchange_##name(volatile T* p, T* expected, T value, int, int) { \
    watcher::atomic(const_cast<T*>(p), sizeof(T), true, true, FROM);                                  \
    return __atomic_compare_exchange_n(p, expected, value, weak, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
  }
#define ATOMICS(bits, T)                                              \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {            \
    watcher::atomic(const_cast<T*>(p), sizeof(T), true, false, FROM); \
    return __atomic_load_n(p, __ATOMIC_RELAXED);                      \
  }                                                                   \
  void __tsan_atomic##bits##_store(volatile T* p, T value, int) {     \
    watcher::atomic(const_cast<T*>(p), sizeof(T), false, true, FROM); \
    __atomic_store_n(p, value, __ATOMIC_RELAXED);                     \
  }                                                                   \
  T __tsan_atomic##bits##_exchange(volatile T* p, T value, int) {     \
    watcher::atomic(const_cast<T*>(p), sizeof(T), true, true, FROM);  \
    return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);           \
  }                                                                   \
  READ_MODIFY_WRITE(bits, T, fetch_add)                               \
  READ_MODIFY_WRITE(bits, T, fetch_sub)                               \
  READ_MODIFY_WRITE(bits, T, fetch_and)                               \
  READ_MODIFY_WRITE(bits, T, fetch_or)                                \
  READ_MODIFY_WRITE(bits, T, fetch_xor)                               \
  COMPARE_EXCHANGE(bits, T, strong, false)                            \
  COMPARE_EXCHANGE(bits, T, weak, true)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
#endif
