// Tells a service manager how this process is doing, as systemd's sd_notify(3) describes.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace moe {

// What it sends: READY=1, STATUS= with what the process does, STOPPING=1 and, if the
// manager set $WATCHDOG_USEC, WATCHDOG=1 at half that time. Does nothing in a process
// without $NOTIFY_SOCKET.
class ServiceNotifier {
 public:
  // describe: in a line, what the process does at present. Called about once a second on a
  // thread of this object, until Stop; while it doesn't return there is no sign of life
  // either, so it should take the locks that the work takes.
  explicit ServiceNotifier(std::function<std::string()> describe);
  // Stop.
  ~ServiceNotifier();
  ServiceNotifier(const ServiceNotifier&) = delete;
  ServiceNotifier& operator=(const ServiceNotifier&) = delete;

  // The process serves, or has joined. Any thread; only the first call counts.
  void Ready();
  // The process is about to end, on purpose. Any thread; only the first call counts.
  void Stopping();
  // Waits until a call of `describe` has returned and what was said has been sent, for a
  // second if the manager takes nothing. What is said afterwards is not sent. Any thread.
  void Stop();

 private:
  struct Shared;
  static void Run(const std::shared_ptr<Shared>& shared);

  // With the thread, which stays behind should the manager never take what it sends. Null:
  // nobody listens.
  std::shared_ptr<Shared> shared_;
};

}  // namespace moe
