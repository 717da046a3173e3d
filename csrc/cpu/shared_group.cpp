#include "shared_group.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "parallel.h"

#ifdef __linux__
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#endif

#if defined(__linux__) && defined(SYS_pidfd_open) && defined(MFD_CLOEXEC)
#define FASTGAN_HAS_SHARED_GROUP 1
#endif

namespace fastgan::cpu {

#ifdef FASTGAN_HAS_SHARED_GROUP

namespace {

constexpr size_t page = 4096;

// While the others are about to come; a core that has nothing else to do is not put to sleep.
constexpr int spins = 4000, yields = 1000;
constexpr std::chrono::microseconds nap(50);
constexpr double look_every = 0.05;  // seconds

void wait_a_moment(int i, bool has_cores) {
  if (i < spins && has_cores) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  } else if (i < spins + yields) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(nap);
  }
}

size_t rounded(size_t bytes) { return (bytes + page - 1) / page * page; }

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("no memory is shared: " + what); }

}  // namespace

// A line of the cache each: one is written by its own process alone.
struct alignas(64) SharedGroup::Seat {
  std::atomic<uint64_t> turn;   // the last meeting that it came to
  std::atomic<int32_t> failed;  // a rank and one: it does not come any more because of that one
  std::atomic<int32_t> process;
};

struct alignas(64) SharedGroup::Head {
  uint64_t token, size, bytes;
};

bool SharedGroup::exists() { return true; }

SharedGroup::SharedGroup(const std::string& path, uint64_t token, int rank, int size, size_t bytes)
    : rank_(rank), size_(size), bytes_(rounded(std::max(bytes, page))) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<int32_t>::is_always_lock_free);
  const size_t head = rounded(sizeof(Head) + size_t(size) * sizeof(Seat));
  mapped_ = head + size_t(size) * 2 * bytes_;
  file_ =
      path.empty() ? int(syscall(SYS_memfd_create, "fastgan", MFD_CLOEXEC)) : open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file_ < 0) refuse("it cannot be opened");
  struct stat found{};
  const bool is_sized = path.empty() ? ftruncate(file_, off_t(mapped_)) == 0
                                     : fstat(file_, &found) == 0 && size_t(found.st_size) == mapped_;
  void* const memory = is_sized ? mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0) : MAP_FAILED;
  if (memory == MAP_FAILED) {
    close(file_);
    refuse("it is of another size, or there is no room");
  }
  memory_ = static_cast<char*>(memory), places_ = memory_ + head;
  Head& own = *reinterpret_cast<Head*>(memory_);
  if (path.empty()) own = {token, uint64_t(size), bytes_};
  if (own.token != token || own.size != uint64_t(size) || own.bytes != bytes_) {
    unmap();
    refuse("it is of another group");
  }
  seat(rank).process = int32_t(getpid());
}

SharedGroup::~SharedGroup() { unmap(); }

void SharedGroup::unmap() noexcept {
  for (const int process : processes_) close(process);
  munmap(memory_, mapped_);
  close(file_);
}

std::string SharedGroup::path() const { return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file_); }

void SharedGroup::watch() {
  while (int(processes_.size()) < size_) {
    const int process = seat(int(processes_.size())).process;
    const int handle = process == 0 ? -1 : int(syscall(SYS_pidfd_open, process, 0));
    if (handle < 0) refuse("a process of the group cannot be watched");
    processes_.push_back(handle);
  }
}

SharedGroup::Seat& SharedGroup::seat(int rank) const { return reinterpret_cast<Seat*>(memory_ + sizeof(Head))[rank]; }

void SharedGroup::look(uint64_t turn, double seconds) {
  if (interrupted) interrupted();
  for (int rank = 0; rank < size_; ++rank) {
    Seat& other = seat(rank);
    pollfd ended{processes_[rank], POLLIN, 0};
    const bool has_ended = poll(&ended, 1, 0) > 0;
    if (other.turn.load(std::memory_order_acquire) >= turn) continue;  // also what it did before it ended
    const auto give_up = [&](const std::string& why, int of) {
      seat(rank_).failed = of + 1;
      throw std::runtime_error("rank " + std::to_string(of) + " " + why);
    };
    if (const int cause = other.failed) {  // which may have given up this one
      const int of = cause - 1 == rank_ ? rank : cause - 1;
      give_up("has failed or ended in the middle of a step", of);
    }
    if (has_ended) give_up("(process " + std::to_string(other.process) + ") has ended", rank);
    if (seconds > patience) give_up("has not answered for " + std::to_string(int64_t(seconds)) + " s", rank);
  }
}

void SharedGroup::meet() {
  if (seat(rank_).failed != 0) throw std::runtime_error("an exchange of this group has failed before");
  if (int(processes_.size()) != size_) throw std::runtime_error("the processes of the group are not watched");
  const uint64_t turn = ++turn_;
  seat(rank_).turn.store(turn, std::memory_order_release);
  static const unsigned cores = std::thread::hardware_concurrency();
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); };
  Clock::time_point began{}, looked{};
  try {
    for (int rank = 0; rank < size_; ++rank) {
      for (int i = 0; seat(rank).turn.load(std::memory_order_acquire) < turn; ++i) {
        wait_a_moment(i, cores >= unsigned(size_));
        if (i < spins) continue;
        if (began == Clock::time_point{}) began = looked = Clock::now();
        if (since(looked) < look_every) continue;
        looked = Clock::now();
        look(turn, since(began));
      }
    }
  } catch (...) {
    fail();
    throw;
  }
}

void SharedGroup::fail() noexcept {
  int32_t none = 0;
  seat(rank_).failed.compare_exchange_strong(none, rank_ + 1);
}

#else

struct SharedGroup::Seat {};
struct SharedGroup::Head {};

bool SharedGroup::exists() { return false; }

SharedGroup::SharedGroup(const std::string&, uint64_t, int rank, int size, size_t bytes)
    : rank_(rank), size_(size), bytes_(bytes) {
  throw std::runtime_error("no memory is shared: this system has no descriptors of processes");
}

SharedGroup::~SharedGroup() = default;
std::string SharedGroup::path() const { return {}; }
void SharedGroup::watch() {}
void SharedGroup::meet() {}
void SharedGroup::fail() noexcept {}

#endif

std::vector<int64_t> SharedGroup::most(const std::vector<int64_t>& values) {
  const size_t bytes = values.size() * sizeof(int64_t);
  if (bytes > bytes_) throw std::runtime_error("too many values");
  const int64_t* const first = place<int64_t>(0);
  std::memcpy(place<int64_t>(rank_), values.data(), bytes);
  meet();
  std::vector<int64_t> result(first, first + values.size());
  for (int rank = 1; rank < size_; ++rank)
    for (size_t i = 0; i < values.size(); ++i) result[i] = std::max(result[i], first[rank * stride<int64_t>() + i]);
  return result;
}

template <class T>
void SharedGroup::add_up(T* values, int64_t n) {
  const int64_t most = int64_t(bytes_ / sizeof(T));
  for (int64_t at = 0; at < n; at += most) {
    const int64_t count = std::min(most, n - at);
    T* const own = place<T>(rank_);
    const T* const first = place<T>(0);
    T* const out = values + at;
    for_ranges(count, [&](int64_t begin, int64_t end) { std::copy(out + begin, out + end, own + begin); });
    meet();
    for_ranges(count, [&](int64_t begin, int64_t end) {
      std::copy(first + begin, first + end, out + begin);
      for (int rank = 1; rank < size_; ++rank) {
        const T* const other = first + rank * stride<T>();
        for (int64_t i = begin; i < end; ++i) out[i] += other[i];
      }
    });
  }
}

template void SharedGroup::add_up<float>(float*, int64_t);
template void SharedGroup::add_up<double>(double*, int64_t);

}  // namespace fastgan::cpu
