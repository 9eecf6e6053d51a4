// A block's threads as fibers of the calling thread.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "tests/kernels/cuda_on_host/cuda_on_host.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

// Keeps what a function has to keep on the stack, which goes to *from, and takes up another that was kept
// like this. (swapcontext makes calls to the system each time: tests would take minutes.)
extern "C" void cuda_on_host_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_on_host_switch
.type cuda_on_host_switch, @function
cuda_on_host_switch:
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
.size cuda_on_host_switch, . - cuda_on_host_switch
)");

namespace cuda_on_host {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = size_t{128} << 10;

bool reversed = false;

// Those that wait for each other.
struct Group {
  int alive = 0;
  int waiting = 0;
  int64_t round = 0;

  // Lets them go on if all that are left have come.
  void Release() {
    if (waiting == 0 || waiting < alive) return;
    waiting = 0;
    ++round;
  }
};

struct Fiber {
  void* top = nullptr;  // of its stack, while it doesn't run
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  int thread = -1;  // -1: idle
  // What it waits for; null: nothing.
  const Group* group = nullptr;
  int64_t round = 0;
};

// Runs one block after the other on the thread that made it.
class Runner {
 public:
  void Run(dim3 grid, dim3 block, const std::function<void()>& thread) {
    body_ = &thread;
    blockDim = block;
    gridDim = grid;
    threads_ = static_cast<int>(block.x);
    if (block.y != 1 || block.z != 1 || threads_ % kWarp != 0) {
      Abort("blocks are rows of whole warps");
    }
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          RunBlock();
        }
      }
    }
  }

  void BlockBarrier() { Wait(block_); }
  void WarpBarrier() { Wait(warps_[current_->thread / kWarp]); }
  uint64_t* Slots() {
    const int warp = current_->thread / kWarp;
    return &slots_[kWarp * (2 * warp + warps_[warp].round % 2)];
  }
  int Lane() const { return current_->thread % kWarp; }

 private:
  [[noreturn]] static void Abort(const char* why) {
    std::fprintf(stderr, "cuda_on_host: %s\n", why);
    std::abort();
  }

  void RunBlock() {
    block_ = {threads_, 0, 0};
    warps_.assign(threads_ / kWarp, {kWarp, 0, 0});
    slots_.assign(2 * threads_, 0);
    next_ = 0;
    finished_ = 0;
    while (finished_ < threads_) {
      // Another thread begins as soon as one waits; only when all have begun the first goes on.
      if (next_ < threads_) {
        if (idle_.empty()) AddFiber();
        Fiber* const fiber = idle_.back();
        idle_.pop_back();
        SwitchTo(*fiber);
        continue;
      }
      bool any = false;
      for (size_t i = 0; i < fibers_.size(); ++i) {
        Fiber& fiber = *fibers_[reversed ? fibers_.size() - 1 - i : i];
        if (fiber.thread < 0 || fiber.group->round == fiber.round) continue;
        any = true;
        SwitchTo(fiber);
      }
      if (!any) Abort("a block's threads wait for each other at different barriers");
    }
  }

  void AddFiber() {
    Fiber& f = *fibers_.emplace_back(std::make_unique<Fiber>());
    // As if it had called the switch at its first instruction: six registers, where it goes on, and a
    // place to keep the stack aligned.
    constexpr int kKept = 8;
    void** const top = reinterpret_cast<void**>(f.stack.get() + kStack) - kKept;
    std::fill_n(top, kKept, nullptr);
    top[6] = reinterpret_cast<void*>(&Enter);
    f.top = top;
    idle_.push_back(&f);
  }

  void SwitchTo(Fiber& f) {
    current_ = &f;
    if (f.thread >= 0) threadIdx = dim3(f.thread);
    Switch(&main_, f.top, f.stack.get(), kStack);
  }

  static void Switch(void** from, void* to, [[maybe_unused]] const void* stack,
                     [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, bytes);
    cuda_on_host_switch(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    cuda_on_host_switch(from, to);
#endif
  }

  static void Enter();

  // Threads one after the other, as long as there are any that nobody has begun.
  [[noreturn]] void Work() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_stack_, &main_stack_bytes_);
#endif
    while (true) {
      while (next_ < threads_) {
        const int thread = reversed ? threads_ - 1 - next_ : next_;
        ++next_;
        Fiber& self = *current_;
        self.thread = thread;
        threadIdx = dim3(thread);
        (*body_)();
        self.thread = -1;
        ++finished_;
        Leave(block_);
        Leave(warps_[thread / kWarp]);
      }
      idle_.push_back(current_);
      Switch(&current_->top, main_, main_stack_, main_stack_bytes_);
    }
  }

  static void Leave(Group& group) {
    --group.alive;
    group.Release();
  }

  void Wait(Group& group) {
    Fiber& self = *current_;
    self.group = &group;
    self.round = group.round;
    ++group.waiting;
    group.Release();
    Switch(&self.top, main_, main_stack_, main_stack_bytes_);
  }

  const std::function<void()>* body_ = nullptr;
  int threads_ = 0;
  int next_ = 0;  // the first thread that nobody has begun
  int finished_ = 0;
  Group block_;
  std::vector<Group> warps_;
  std::vector<uint64_t> slots_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  Fiber* current_ = nullptr;
  void* main_ =
      nullptr;  // the top of the stack of the block's caller, while a thread runs
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
};

Runner& TheRunner() {
  thread_local Runner runner;
  return runner;
}

void Runner::Enter() { TheRunner().Work(); }

}  // namespace

void SetReversed(bool value) { reversed = value; }
void RunGrid(dim3 grid, dim3 block, const std::function<void()>& thread) {
  TheRunner().Run(grid, block, thread);
}
void BlockBarrier() { TheRunner().BlockBarrier(); }
void WarpBarrier() { TheRunner().WarpBarrier(); }
uint64_t* WarpSlots() { return TheRunner().Slots(); }
int Lane() { return TheRunner().Lane(); }

}  // namespace cuda_on_host
