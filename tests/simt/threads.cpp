// The engine for the sanitizers: every CUDA thread is a thread of the operating system, so that ThreadSanitizer sees
// the races between them and AddressSanitizer their memory. Several blocks run at once.
#include <chrono>
#include <deque>
#include <functional>
#include <semaphore>
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

// Threads that stay for the next round: to begin and end one takes ThreadSanitizer longer than most kernels.
class Threads {
 public:
  ~Threads() {
    job_ = nullptr;
    for (std::binary_semaphore& go : go_) go.release();
    for (std::thread& thread : threads_) thread.join();
  }

  // job(0), ..., job(count - 1) at once; back when all have ended.
  void run(size_t count, const std::function<void(size_t)>& job) {
    while (threads_.size() < count) {
      std::binary_semaphore& go = go_.emplace_back(0);
      threads_.emplace_back([this, &go, i = threads_.size()] {
        for (go.acquire(); job_ != nullptr; go.acquire()) {
          (*job_)(i);
          if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.release();
        }
      });
    }
    job_ = &job;
    left_.store(count, std::memory_order_relaxed);
    for (size_t i = 0; i < count; ++i) go_[i].release();
    if (count > 0) done_.acquire();
  }

 private:
  const std::function<void(size_t)>* job_ = nullptr;
  std::atomic<size_t> left_{0};
  std::binary_semaphore done_{0};
  std::deque<std::binary_semaphore> go_;
  std::vector<std::thread> threads_;
};

Threads all_threads;

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
  const int64_t count = launch.block_count(), unit = launch.unit_blocks();
  const int64_t units = std::max<int64_t>(1, std::max<int64_t>(2, 256 / threads) / unit);
  const int64_t at_once = std::min(count, units * unit);
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
    std::vector<Cluster> clusters(launch.together.clustered ? now / unit : 0);
    for (int64_t b = 0; b < now; ++b) {
      blocks[b]->prepare(launch);
      if (clusters.empty()) continue;
      blocks[b]->cluster = &clusters[b / unit];
      clusters[b / unit].add(blocks[b].get(), launch.descending);
    }
    all_threads.run(now * threads, [&](size_t i) {
      const int64_t b = int64_t(i) / threads;
      Thread thread;
      Copies copies;
      launch.place(thread, *blocks[b], launch.index((first + b) / unit, (first + b) % unit), int(i) % threads);
      thread.copies = &copies;
      current = &thread;
      place = i;
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
    for (int64_t b = 0; b < now && !error; ++b) blocks[b]->check_memory();
  }
  waits = nullptr;
  if (error) std::rethrow_exception(error);
}

}  // namespace simt
