#include "memory.h"

#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace simt {

namespace {

constexpr size_t arena_bytes = size_t{1} << 30, alignment = 256;
constexpr int exit_status = 70;

struct Arena {
  unsigned char* base = nullptr;
  size_t used = 0;
  std::map<size_t, std::vector<unsigned char*>> unused;  // by size
  std::map<unsigned char*, size_t> sizes;
  int open = 0;  // how many work
  std::mutex mutex;
  struct sigaction before;
};

// Never destroyed: tensors may outlive it.
Arena& arena() {
  static Arena& one = *new Arena;
  return one;
}

std::atomic<unsigned char*> base{nullptr};
std::atomic<bool> kept{false};

void protect(int protection) {
  if (mprotect(arena().base, arena_bytes, protection) != 0) std::perror("simt: mprotect");
}

// Says what was touched, from where, and ends the program: after a fault of the hardware nothing can be thrown.
void on_fault(int signal, siginfo_t* info, void* context) {
  Arena& a = arena();
  if (!is_device(info->si_addr)) {
    sigaction(signal, &a.before, nullptr);
    return;  // and again, to who was there before
  }
  auto* const address = static_cast<unsigned char*>(info->si_addr);
  auto allocation = a.sizes.upper_bound(address);
  char text[200];
  int length = std::snprintf(text, sizeof text, "simt: the host touches device memory, outside any allocation.\n");
  if (allocation != a.sizes.begin() && address < (--allocation)->first + allocation->second)
    length =
        std::snprintf(text, sizeof text, "simt: the host touches device memory: byte %td of an allocation of %zu.\n",
                      address - allocation->first, allocation->second);
  void* frames[40];
  const int count = backtrace(frames, 40);
  (void)!write(STDERR_FILENO, text, size_t(length));
  backtrace_symbols_fd(frames, count, STDERR_FILENO);
  _exit(exit_status);
}

void start(Arena& a) {
  void* const memory = mmap(nullptr, arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  a.base = static_cast<unsigned char*>(memory);
  base = a.base;
  void* frames[1];
  backtrace(frames, 1);  // loads what it needs, which a handler must not
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &a.before);
}

}  // namespace

bool is_device(const void* p) {
  const unsigned char* const begin = base.load(std::memory_order_relaxed);
  return begin != nullptr && size_t(static_cast<const unsigned char*>(p) - begin) < arena_bytes;
}

void* device_allocate(size_t bytes) {
  Arena& a = arena();
  bytes = (bytes + alignment - 1) / alignment * alignment;
  if (bytes == 0) return nullptr;
  unsigned char* p;
  {
    const std::lock_guard lock(a.mutex);
    if (a.base == nullptr) start(a);
    std::vector<unsigned char*>& unused = a.unused[bytes];
    if (!unused.empty()) {
      p = unused.back();
      unused.pop_back();
    } else {
      if (a.used + bytes > arena_bytes) throw std::bad_alloc();
      p = a.base + a.used;
      a.used += bytes;
    }
    a.sizes[p] = bytes;
  }
  const DeviceWork work;
  std::memset(p, 0xff, bytes);
  return p;
}

void device_free(void* p) {
  if (p == nullptr) return;
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const auto found = a.sizes.find(static_cast<unsigned char*>(p));
  a.unused[found->second].push_back(found->first);
  a.sizes.erase(found);
}

void keep_kernels_to_device_memory() { kept = true; }
bool are_kernels_kept_to_device_memory() { return kept.load(std::memory_order_relaxed); }

DeviceWork::DeviceWork() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (a.open++ == 0 && a.base != nullptr) protect(PROT_READ | PROT_WRITE);
}

DeviceWork::~DeviceWork() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (--a.open == 0 && a.base != nullptr) protect(PROT_NONE);
}

}  // namespace simt
