// An etcd of one member for a test, on ports and in a folder of its own.
#pragma once

#include <sys/types.h>

#include <string>

namespace moe {

class EtcdProcess {
 public:
  // folder: for its data; may exist. Doesn't start it.
  explicit EtcdProcess(std::string folder);
  ~EtcdProcess();

  // Fails the test if the program isn't there or doesn't answer.
  void Start();
  // Kills it. Its data stays.
  void Kill();
  void LoseData();
  // host:port for clients.
  const std::string& address() const { return client_; }

 private:
  const std::string folder_;
  const std::string client_;
  const std::string peer_;
  pid_t pid_ = 0;
};

}  // namespace moe
