// The engine for the sanitizers: every CUDA thread is a thread of the operating system, so that ThreadSanitizer sees
// the races between them and AddressSanitizer their memory. Several blocks run at once.
#include <chrono>
#include <thread>

#include "engine.h"

namespace simt {

namespace {

// Where each thread of a round of blocks waits, for the sentence of a deadlock. Relaxed atomics and no lock: that would
// order threads which nothing in the kernel orders, and hide their races from ThreadSanitizer.
struct Waits {
  explicit Waits(size_t threads) : meetings(threads) {}

  std::string describe() const {
    std::vector<Meeting*> waiting;
    for (const auto& meeting : meetings)
      if (Meeting* at = meeting.load(std::memory_order_relaxed)) waiting.push_back(at);
    return describe_wait(waiting, ended.load(std::memory_order_relaxed));
  }

  std::vector<std::atomic<Meeting*>> meetings;
  std::atomic<int> ended{0};
};

Waits* waits = nullptr;  // one launch at a time runs on this engine
thread_local size_t place = 0;
std::mutex one_launch;

}  // namespace

void wait_in_thread(Meeting& meeting, uint64_t round, std::unique_lock<std::mutex>& lock) {
  Launch& launch = *current->block->launch;
  waits->meetings[place].store(&meeting, std::memory_order_relaxed);
  // The last to come to a meeting is still running: so where none is, none will come.
  if (launch.running.fetch_sub(1, std::memory_order_relaxed) == 1) fault(waits->describe());
  while (meeting.round.load(std::memory_order_relaxed) == round) {
    if (launch.abandoned.load(std::memory_order_relaxed)) throw Abandoned{};
    meeting.changed.wait_for(lock, std::chrono::milliseconds(20));
  }
  waits->meetings[place].store(nullptr, std::memory_order_relaxed);
}

void run_threads(Launch& launch) {
  const std::lock_guard guard(one_launch);
  const int threads = launch.thread_count();
  const int64_t count = launch.block_count();
  const int64_t at_once = launch.cooperative ? count : std::min<int64_t>(count, std::max<int64_t>(2, 256 / threads));
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<std::unique_ptr<Block>> blocks;
  for (int64_t b = 0; b < at_once; ++b) blocks.push_back(std::make_unique<Block>());
  // Rounds of blocks, each to its end: no thread of one meets one of another.
  for (int64_t first = 0; first < count && !error; first += at_once) {
    const int64_t now = std::min(at_once, count - first);
    launch.running = int(now * threads);
    Waits of_round(now * threads);
    waits = &of_round;
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
          place = b * threads + t;
          const auto fail = [&](std::exception_ptr caught) {
            const std::lock_guard lock(error_mutex);
            if (!error) error = caught;
            launch.abandoned.store(true, std::memory_order_relaxed);
          };
          try {
            launch.kernel();
            thread_ends();
            of_round.ended.fetch_add(1, std::memory_order_relaxed);
            // What orders the ends of threads orders nothing that a kernel does.
            if (launch.running.fetch_sub(1, std::memory_order_acq_rel) == 1 &&
                of_round.ended.load(std::memory_order_relaxed) < now * threads)
              fault(of_round.describe());
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
