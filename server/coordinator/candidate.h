// A coordinator whose store is in etcd, before it leads and as long as it does.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/net/rpc_server.h"
#include "server/coordinator/etcd_client.h"
#include "server/coordinator/etcd_store.h"
#include "server/coordinator/leadership.h"

namespace moe {

struct EtcdAddress {
  std::vector<std::string> endpoints;
  std::string prefix;
};
// Of "etcd://host:port[,host:port...]/prefix".
absl::StatusOr<EtcdAddress> ParseEtcdAddress(absl::string_view store);

class Candidate {
 public:
  struct Options {
    EtcdClient::Options etcd;
    // Of all keys of the job.
    std::string prefix;
    // As RpcServer::Start.
    std::string listen;
    // Of what it answers as a standby; the health of services is this object's.
    RpcServer::Options rpc;
    // Where members reach this coordinator; empty: where it listens.
    std::string advertise;
    // How long another waits for a leader that isn't heard.
    absl::Duration lease = absl::Seconds(5);
    // Of an operation of the store.
    absl::Duration timeout = absl::Minutes(2);
    // Gets lines for people; may be null.
    std::function<void(const std::string&)> print;
    // The address that it listens at, once it does.
    std::function<void(const std::string&)> listening;
    // It led, and doesn't any more, or can't trust etcd. Called once, from any thread; nothing that it
    // has in mind counts from then on. When it returns, the store's operations fail.
    std::function<void(const std::string& cause)> on_deposed;
    // Ends Await.
    std::function<bool()> cancelled = [] { return false; };
  };

  // Waits until it leads. Listens meanwhile, as a standby.
  static absl::StatusOr<std::unique_ptr<Candidate>> Await(Options options);
  // Doesn't lead any more.
  ~Candidate() = default;

  // Where it listened, and is to listen as the leader.
  const std::string& address() const { return address_; }
  // Of the job; this object outlives what uses it.
  Store& store() { return *store_; }
  bool sure() const { return leadership_->sure(); }
  // Ends all waits for etcd; the store fails from then on. Any thread.
  void GiveUp() { client_->Cancel(); }
  // Lets another lead at once. From then on it isn't sure, and the store fails with on_deposed. Any thread.
  void Resign() { leadership_->Resign(); }
  // Whether it has seen another one lead.
  bool was_standby() const { return was_standby_; }

 private:
  Candidate() = default;

  std::string address_;
  bool was_standby_ = false;
  std::unique_ptr<EtcdClient> client_;
  std::unique_ptr<Leadership> leadership_;
  std::unique_ptr<EtcdStore> store_;
};

}  // namespace moe
