// The way to the coordinator that leads, of several.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"

namespace moe {

// Thread-safe.
class CoordinatorStub {
 public:
  using Stub = std::shared_ptr<v1::CoordinatorService::Stub>;

  // addresses: "a:1" or "a:1,b:2". tls null: plaintext.
  CoordinatorStub(const std::string& addresses,
                  std::shared_ptr<const TlsCredentials> tls);

  // To be asked next.
  Stub get();
  // What a call of `stub` came back with: UNAVAILABLE moves on to the next address, as a standby answers
  // it, and nobody does. Whether it did.
  bool NoteAnswer(const Stub& stub, const grpc::Status& status);
  // Moves on, unless another call has done so. Whether it did; with one address it only connects anew.
  bool Move(const Stub& stub);
  // UNAUTHENTICATED with the reasons if no address is of use for the sake of TLS (CheckConnection), else OK.
  // May take seconds for each address.
  absl::Status CheckConnections() const;

 private:
  const std::vector<std::string> addresses_;
  const std::shared_ptr<const TlsCredentials> tls_;
  absl::Mutex mutex_;
  size_t address_ ABSL_GUARDED_BY(mutex_) = 0;
  Stub stub_ ABSL_GUARDED_BY(mutex_);
  absl::Time made_ ABSL_GUARDED_BY(mutex_);  // when stub_ was
};

}  // namespace moe
