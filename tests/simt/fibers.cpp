// The fast engine: every CUDA thread is a fiber, all of them on the thread that launched. Blocks run one after another
// (those of a cooperative launch together), fibers in turn, each until it waits.
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

namespace {

void fiber_main();

#if defined(__x86_64__)

// Saves what a call must preserve, then goes on with the stack of another context.
extern "C" void fastgan_simt_switch(void** save, void* to);
asm(R"(
.text
.globl fastgan_simt_switch
.hidden fastgan_simt_switch
.type fastgan_simt_switch, @function
fastgan_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastgan_simt_switch, .-fastgan_simt_switch
)");

struct Context {
  void* stack_pointer = nullptr;

  void start(unsigned char* stack) {
    void** top = reinterpret_cast<void**>(stack + stack_bytes);
    *--top = nullptr;  // where fiber_main would return to: also what aligns the stack as after a call
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  static void change(Context& from, Context& to) { fastgan_simt_switch(&from.stack_pointer, to.stack_pointer); }
};

#else

struct Context {
  ucontext_t context;

  void start(unsigned char* stack) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};

#endif

struct Fiber {
  Context context;
  Thread thread;
  Copies copies;
  bool ended = false;
  Meeting* waits_at = nullptr;
  uint64_t round = 0;
};

// Stacks, kept for later launches of this OS thread, each above a page that may not be touched.
class Stacks {
 public:
  ~Stacks() {
    for (unsigned char* stack : list_) munmap(stack - guard_, stack_bytes + guard_);
  }
  unsigned char* at(size_t i) {
    while (list_.size() <= i) {
      void* memory = mmap(nullptr, stack_bytes + guard_, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      if (memory == MAP_FAILED) throw Fault("simt: there is no memory for another fiber's stack.");
      mprotect(memory, guard_, PROT_NONE);
      list_.push_back(static_cast<unsigned char*>(memory) + guard_);
    }
    return list_[i];
  }

 private:
  size_t guard_ = size_t(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char*> list_;
};

// What one OS thread needs to run launches, kept between them.
struct Scheduler {
  Stacks stacks;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Block>> blocks;
  std::unique_ptr<Cluster> cluster;
  Context main;
  Fiber* running = nullptr;
  Launch* launch = nullptr;
  std::exception_ptr error;

  void resume(Fiber& fiber) {
    running = &fiber;
    current = &fiber.thread;
    in_fiber = true;
    Context::change(main, fiber.context);
    in_fiber = false;
    current = nullptr;
  }

  // Runs the blocks of a unit to their end, together.
  void run(int64_t unit) {
    const int threads = launch->thread_count(), count = int(launch->unit_blocks());
    cluster = launch->together.clustered ? std::make_unique<Cluster>() : nullptr;
    while (blocks.size() < size_t(count)) blocks.push_back(std::make_unique<Block>());
    while (fibers.size() < size_t(count) * threads) fibers.push_back(std::make_unique<Fiber>());
    for (int b = 0; b < count; ++b) {
      blocks[b]->prepare(*launch);
      if (cluster) {
        blocks[b]->cluster = cluster.get();
        cluster->add(blocks[b].get(), launch->descending);
      }
      for (int t = 0; t < threads; ++t) {
        Fiber& fiber = *fibers[size_t(b) * threads + t];
        launch->place(fiber.thread, *blocks[b], launch->index(unit, b), t);
        fiber.thread.copies = &fiber.copies;
        fiber.copies.list.clear();
        fiber.copies.groups.clear();
        fiber.ended = false;
        fiber.waits_at = nullptr;
        fiber.thread.stack = stacks.at(size_t(b) * threads + t);
        fiber.context.start(fiber.thread.stack);
      }
    }
    const size_t all = size_t(count) * threads;
    for (size_t ended = 0; ended < all;) {
      bool any_ran = false;
      for (size_t i = 0; i < all; ++i) {
        Fiber& fiber = *fibers[i];
        if (fiber.ended) continue;
        if (fiber.waits_at != nullptr && fiber.waits_at->round.load(std::memory_order_relaxed) == fiber.round) continue;
        fiber.waits_at = nullptr;
        any_ran = true;
        resume(fiber);
        if (error) return;
        ended += fiber.ended;
      }
      if (!any_ran) {
        std::vector<Meeting*> meetings;
        for (size_t i = 0; i < all; ++i)
          if (!fibers[i]->ended) meetings.push_back(fibers[i]->waits_at);
        throw Fault("simt: kernel " + std::string(launch->name) + ": " + describe_wait(meetings, int(ended)) + ".");
      }
    }
    for (int b = 0; b < count; ++b) {
      blocks[b]->check_memory();
      count::end_block(*blocks[b]);
    }
  }
};

thread_local std::unique_ptr<Scheduler> scheduler;

void fiber_main() {
  Scheduler& s = *scheduler;
  try {
    s.launch->kernel();
    thread_ends();
  } catch (...) {
    s.error = std::current_exception();
  }
  s.running->ended = true;
  Context::change(s.running->context, s.main);
  __builtin_unreachable();
}

}  // namespace

void wait_in_fiber(Meeting& meeting, uint64_t round) {
  Fiber& fiber = *scheduler->running;
  fiber.waits_at = &meeting;
  fiber.round = round;
  Context::change(fiber.context, scheduler->main);
}

void abandon_fiber(std::exception_ptr error) {
  Fiber& fiber = *scheduler->running;
  scheduler->error = error;
  fiber.ended = true;
  Context::change(fiber.context, scheduler->main);
  __builtin_unreachable();
}

void run_fibers(Launch& launch) {
  if (!scheduler) scheduler = std::make_unique<Scheduler>();
  Scheduler& s = *scheduler;
  s.launch = &launch;
  s.error = nullptr;
  try {
    for (int64_t unit = 0; unit < launch.unit_count() && !s.error; ++unit) s.run(unit);
    if (s.error) std::rethrow_exception(s.error);
  } catch (...) {
    // The fibers that were left are never resumed; meetings may have been left half full.
    s.blocks.clear();
    throw;
  }
}

}  // namespace simt
