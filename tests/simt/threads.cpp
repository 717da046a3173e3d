// The engine for the sanitizers: every CUDA thread is a thread of the operating system, so that ThreadSanitizer sees
// the races between them and AddressSanitizer their memory. Several blocks run at once.
#include <chrono>
#include <thread>

#include "engine.h"

namespace simt {

namespace {

// Where each thread of a launch waits, for the sentence of a deadlock.
struct Waits {
  std::mutex mutex;
  std::vector<Meeting*> meetings;
  int ended = 0;
};

Waits* waits = nullptr;  // one launch at a time runs on this engine
std::mutex one_launch;

}  // namespace

void wait_in_thread(Meeting& meeting, uint64_t round, std::unique_lock<std::mutex>& lock) {
  Launch& launch = *current->block->launch;
  {
    const std::lock_guard guard(waits->mutex);
    waits->meetings.push_back(&meeting);
  }
  // The last to come to a meeting is still running: so where none is, none will come.
  const bool deadlock = launch.running.fetch_sub(1, std::memory_order_relaxed) == 1;
  if (deadlock) {
    launch.running.fetch_add(1, std::memory_order_relaxed);
    const std::lock_guard guard(waits->mutex);
    fault(describe_wait(waits->meetings, waits->ended));
  }
  while (meeting.round.load(std::memory_order_relaxed) == round) {
    if (launch.abandoned.load(std::memory_order_relaxed)) throw Abandoned{};
    meeting.changed.wait_for(lock, std::chrono::milliseconds(20));
  }
  const std::lock_guard guard(waits->mutex);
  std::erase(waits->meetings, &meeting);
}

void run_threads(Launch& launch) {
  const std::lock_guard guard(one_launch);
  const int threads = launch.thread_count();
  const int64_t count = launch.block_count();
  const int64_t at_once = launch.cooperative ? count : std::min<int64_t>(count, std::max<int64_t>(2, 256 / threads));
  Waits of_launch;
  waits = &of_launch;
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<std::unique_ptr<Block>> blocks;
  for (int64_t b = 0; b < at_once; ++b) blocks.push_back(std::make_unique<Block>());
  // Rounds of blocks, each to its end: no thread of one meets one of another.
  for (int64_t first = 0; first < count && !error; first += at_once) {
    const int64_t now = std::min(at_once, count - first);
    launch.running = int(now * threads);
    of_launch.meetings.clear();
    of_launch.ended = 0;
    for (int64_t b = 0; b < now; ++b) blocks[b]->prepare(launch);
    std::vector<std::thread> workers;
    for (int64_t b = 0; b < now; ++b)
      for (int t = 0; t < threads; ++t)
        workers.emplace_back([&, b, t] {
          Thread thread;
          Copies copies;
          launch.place(thread, *blocks[b], first + b, t);
          thread.copies = &copies;
          current = &thread;
          const auto fail = [&](std::exception_ptr caught) {
            const std::lock_guard lock(error_mutex);
            if (!error) error = caught;
            launch.abandoned.store(true, std::memory_order_relaxed);
          };
          try {
            launch.kernel();
            thread_ends();
            std::vector<Meeting*> left;
            {
              const std::lock_guard lock(of_launch.mutex);
              ++of_launch.ended;
              left = of_launch.meetings;
            }
            if (launch.running.fetch_sub(1, std::memory_order_relaxed) == 1 && !left.empty()) {
              const std::lock_guard lock(of_launch.mutex);
              if (!launch.abandoned.load(std::memory_order_relaxed))
                fault(describe_wait(of_launch.meetings, of_launch.ended));
            }
          } catch (const Abandoned&) {
          } catch (...) {
            fail(std::current_exception());
          }
          current = nullptr;
        });
    for (std::thread& worker : workers) worker.join();
    for (int64_t b = 0; b < now && !error; ++b) blocks[b]->check_memory();
  }
  waits = nullptr;
  if (error) std::rethrow_exception(error);
}

}  // namespace simt
