#include "common/base/service_notifier.h"

#include <glog/logging.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

namespace moe {
namespace {

using std::chrono::microseconds;
using Clock = std::chrono::steady_clock;

constexpr microseconds kLook = std::chrono::seconds(1);
// For a manager that takes nothing.
constexpr microseconds kPatience = std::chrono::seconds(1);

// A message is lines, and a manager shows one.
std::string OneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

struct ServiceNotifier::Shared {
  std::function<std::string()> describe;
  // Between two signs of life; 0: nobody asks for them.
  microseconds sign_of_life{0};

  std::mutex mutex;
  std::condition_variable changed;
  // Under the mutex.
  bool ready = false;
  bool stopping = false;
  bool stop = false;
  bool sending = false;
  bool ended = false;
};

ServiceNotifier::ServiceNotifier(std::function<std::string()> describe) {
  if (std::getenv("NOTIFY_SOCKET") == nullptr) return;
  shared_ = std::make_shared<Shared>();
  shared_->describe = std::move(describe);
  uint64_t watchdog = 0;
  if (sd_watchdog_enabled(0, &watchdog) > 0) {
    shared_->sign_of_life = std::max(microseconds(1), microseconds(watchdog / 2));
  }
  std::thread([shared = shared_] { Run(shared); }).detach();
}

ServiceNotifier::~ServiceNotifier() { Stop(); }

void ServiceNotifier::Ready() {
  if (shared_ == nullptr) return;
  const std::lock_guard lock(shared_->mutex);
  shared_->ready = true;
  shared_->changed.notify_all();
}

void ServiceNotifier::Stopping() {
  if (shared_ == nullptr) return;
  const std::lock_guard lock(shared_->mutex);
  shared_->stopping = true;
  shared_->changed.notify_all();
}

void ServiceNotifier::Stop() {
  if (shared_ == nullptr) return;
  std::unique_lock lock(shared_->mutex);
  shared_->stop = true;
  shared_->changed.notify_all();
  // A call of `describe` uses what the owner of this object may destroy next.
  shared_->changed.wait(lock, [&] { return shared_->ended || shared_->sending; });
  shared_->changed.wait_for(lock, kPatience, [&] { return shared_->ended; });
}

void ServiceNotifier::Run(const std::shared_ptr<Shared>& shared) {
  bool said_ready = false, said_stopping = false, complained = false;
  std::string said_status;
  Clock::time_point next_sign = Clock::now();
  std::unique_lock lock(shared->mutex);
  while (true) {
    const bool last = shared->stop;
    std::string status = said_status;
    if (!last) {
      lock.unlock();
      status = OneLine(shared->describe());
      lock.lock();
    }
    const bool ready = shared->ready, stopping = shared->stopping;
    std::string message;
    if (ready && !std::exchange(said_ready, ready)) message += "READY=1\n";
    if (stopping && !std::exchange(said_stopping, stopping)) message += "STOPPING=1\n";
    if (status != said_status) message += "STATUS=" + status + "\n";
    const Clock::time_point now = Clock::now();
    if (shared->sign_of_life.count() > 0 && !last && now >= next_sign) {
      message += "WATCHDOG=1\n";
      next_sign = now + shared->sign_of_life;
    }
    said_status = std::move(status);
    if (!message.empty()) {
      shared->sending = true;
      shared->changed.notify_all();
      lock.unlock();
      const int sent = sd_notify(0, message.c_str());
      lock.lock();
      shared->sending = false;
      if (sent < 0 && !std::exchange(complained, true)) {
        LOG(WARNING) << "cannot tell the service manager at "
                     << std::getenv("NOTIFY_SOCKET")
                     << " how this process is doing: " << std::strerror(-sent);
      }
    }
    // What was said meanwhile goes out first.
    if (shared->ready != said_ready || shared->stopping != said_stopping) continue;
    if (shared->stop) break;
    const microseconds pause =
        shared->sign_of_life.count() > 0 ? std::min(kLook, shared->sign_of_life) : kLook;
    shared->changed.wait_for(lock, pause, [&] {
      return shared->stop || shared->ready != said_ready ||
             shared->stopping != said_stopping;
    });
  }
  shared->ended = true;
  shared->changed.notify_all();
}

}  // namespace moe
