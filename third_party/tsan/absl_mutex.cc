// Tells ThreadSanitizer of the order that Debian's Abseil makes.
//
// That Abseil isn't instrumented, so to TSan its mutexes order nothing and every guarded
// member looks like a race. The functions below stand in front of the library's own and
// call them, with the acquire or release that TSan would have seen.

#include <dlfcn.h>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// Calls the library's own function of that name; `self` is the object it is a member of.
template <typename Result, typename... Args>
Result CallReal(void** cache, const char* symbol, const void* self, Args... args) {
  void* function = __atomic_load_n(cache, __ATOMIC_RELAXED);
  if (function == nullptr) {
    function = dlsym(RTLD_NEXT, symbol);
    if (function == nullptr) __builtin_trap();  // Another Abseil than the headers'.
    __atomic_store_n(cache, function, __ATOMIC_RELAXED);
  }
  return reinterpret_cast<Result (*)(const void*, Args...)>(function)(self, args...);
}

#define SW_REAL(result, symbol, ...)                      \
  [&] {                                                   \
    static constinit void* cache = nullptr;               \
    return CallReal<result>(&cache, symbol, __VA_ARGS__); \
  }()

template <typename T>
void Acquire(const T* address) {
  __tsan_acquire(const_cast<T*>(address));
}

template <typename T>
void Release(const T* address) {
  __tsan_release(const_cast<T*>(address));
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  SW_REAL(void, "_ZN4absl7debian35Mutex4LockEv", this);
  Acquire(this);
}

void Mutex::Unlock() {
  Release(this);
  SW_REAL(void, "_ZN4absl7debian35Mutex6UnlockEv", this);
}

bool Mutex::TryLock() {
  const bool locked = SW_REAL(bool, "_ZN4absl7debian35Mutex7TryLockEv", this);
  if (locked) Acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  SW_REAL(void, "_ZN4absl7debian35Mutex10ReaderLockEv", this);
  Acquire(this);
}

void Mutex::ReaderUnlock() {
  Release(this);
  SW_REAL(void, "_ZN4absl7debian35Mutex12ReaderUnlockEv", this);
}

bool Mutex::ReaderTryLock() {
  const bool locked = SW_REAL(bool, "_ZN4absl7debian35Mutex13ReaderTryLockEv", this);
  if (locked) Acquire(this);
  return locked;
}

void Mutex::Await(const Condition& condition) {
  Release(this);
  SW_REAL(void, "_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE", this, &condition);
  Acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  Release(this);
  const bool met = SW_REAL(
      bool, "_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE",
      this, &condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  Release(this);
  const bool met = SW_REAL(
      bool, "_ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE", this,
      &condition, deadline);
  Acquire(this);
  return met;
}

void Mutex::LockWhen(const Condition& condition) {
  SW_REAL(void, "_ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE", this, &condition);
  Acquire(this);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  const bool met = SW_REAL(
      bool, "_ZN4absl7debian35Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE",
      this, &condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  const bool met = SW_REAL(
      bool, "_ZN4absl7debian35Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE",
      this, &condition, deadline);
  Acquire(this);
  return met;
}

void Mutex::ReaderLockWhen(const Condition& condition) {
  SW_REAL(void, "_ZN4absl7debian35Mutex14ReaderLockWhenERKNS0_9ConditionE", this,
          &condition);
  Acquire(this);
}

// The library evaluates conditions in whichever thread unlocks, under the mutex but after
// the release above.
bool Condition::Eval() const {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const bool met = SW_REAL(bool, "_ZNK4absl7debian39Condition4EvalEv", this);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return met;
}

void CondVar::Wait(Mutex* mutex) {
  Release(mutex);
  SW_REAL(void, "_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE", this, mutex);
  Acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  Release(mutex);
  const bool expired = SW_REAL(
      bool, "_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", this,
      mutex, timeout);
  Acquire(mutex);
  return expired;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  Release(mutex);
  const bool expired =
      SW_REAL(bool, "_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE",
              this, mutex, deadline);
  Acquire(mutex);
  return expired;
}

void Notification::Notify() {
  Release(&notified_yet_);
  SW_REAL(void, "_ZN4absl7debian312Notification6NotifyEv", this);
}

void Notification::WaitForNotification() const {
  SW_REAL(void, "_ZNK4absl7debian312Notification19WaitForNotificationEv", this);
  Acquire(&notified_yet_);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  const bool notified = SW_REAL(
      bool,
      "_ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE",
      this, timeout);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  const bool notified = SW_REAL(
      bool, "_ZNK4absl7debian312Notification31WaitForNotificationWithDeadlineENS0_4TimeE",
      this, deadline);
  if (notified) Acquire(&notified_yet_);
  return notified;
}

bool BlockingCounter::DecrementCount() {
  Release(this);
  const bool zero =
      SW_REAL(bool, "_ZN4absl7debian315BlockingCounter14DecrementCountEv", this);
  if (zero) Acquire(this);
  return zero;
}

void BlockingCounter::Wait() {
  SW_REAL(void, "_ZN4absl7debian315BlockingCounter4WaitEv", this);
  Acquire(this);
}

ABSL_NAMESPACE_END
}  // namespace absl
