#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace fastgan::cpu {

namespace {

thread_local bool in_team = false;

int cores() { return std::max(1, int(std::thread::hardware_concurrency())); }
std::atomic<int (*)()> most_of{&cores};

// Threads that stay, and sleep between regions. Never destroyed: they may outlive what runs at the end of a process.
class Threads {
 public:
  bool run(int threads, void (*work)(const void*, int, int), const void* argument) {
    const std::unique_lock<std::mutex> only(busy_, std::try_to_lock);
    if (!only.owns_lock() || !grow_to(threads)) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = work, argument_ = argument, threads_ = threads;
      left_ = threads - 1;
      round_.fetch_add(1, std::memory_order_release);
    }
    started_.notify_all();
    in_team = true;
    work(argument, 0, threads);
    in_team = false;
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [this] { return left_ == 0; });
    return true;
  }

 private:
  bool grow_to(int threads) {
    try {
      for (; count_ < threads - 1; ++count_) std::thread(&Threads::serve, this, count_ + 1, round_.load()).detach();
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  void serve(int thread, long seen) {
    in_team = true;
    for (;;) {
      // The next region often follows within microseconds, in which a sleeping thread does not wake.
      for (int turn = 0; turn < 2000 && round_.load(std::memory_order_acquire) == seen; ++turn)
        if (turn % 100 == 99) std::this_thread::yield();
      std::unique_lock<std::mutex> lock(mutex_);
      started_.wait(lock, [&] { return round_.load() != seen; });
      seen = round_.load();
      if (thread >= threads_) continue;
      const auto work = work_;
      const void* const argument = argument_;
      const int threads = threads_;
      lock.unlock();
      work(argument, thread, threads);
      lock.lock();
      if (--left_ == 0) finished_.notify_one();
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable started_, finished_;
  std::atomic<long> round_{0};
  int count_ = 0;  // threads beside the caller
  void (*work_)(const void*, int, int) = nullptr;
  const void* argument_ = nullptr;
  int threads_ = 0, left_ = 0;
};

// After a fork the child has none of its parent's threads, and needs a team of its own.
Threads& team() {
  static std::mutex mutex;
  static Threads* current = new Threads;
#if !defined(_WIN32)
  static pid_t owner = getpid();
  const std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) current = new Threads, owner = getpid();
#endif
  return *current;
}

}  // namespace

void set_most_threads(int (*most)()) { most_of = most; }
int most_threads() { return std::max(1, most_of.load()()); }
bool is_in_team() { return in_team; }

bool run_team(int threads, void (*work)(const void*, int, int), const void* argument) {
  return !in_team && team().run(threads, work, argument);
}

}  // namespace fastgan::cpu
