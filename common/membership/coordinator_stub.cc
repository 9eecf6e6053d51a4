#include "common/membership/coordinator_stub.h"

#include <utility>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/net/channel.h"
#include "common/net/connection_check.h"
#include "glog/logging.h"

namespace moe {
namespace {

// What a connection may take at least.
constexpr absl::Duration kConnect = absl::Seconds(1);

}  // namespace

CoordinatorStub::CoordinatorStub(const std::string& addresses,
                                 std::shared_ptr<const TlsCredentials> tls)
    : addresses_(SplitAddresses(addresses)), tls_(std::move(tls)) {}

CoordinatorStub::Stub CoordinatorStub::get() {
  absl::MutexLock lock(&mutex_);
  if (stub_ == nullptr) {
    // Without an address it has no coordinator to find.
    const std::string address = addresses_.empty() ? "" : addresses_[address_];
    stub_ =
        v1::CoordinatorService::NewStub(MakeChannel(address, tls_, Role::kCoordinator));
    made_ = absl::Now();
  }
  return stub_;
}

bool CoordinatorStub::NoteAnswer(const Stub& stub, const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && Move(stub);
}

bool CoordinatorStub::Move(const Stub& stub) {
  absl::MutexLock lock(&mutex_);
  if (stub_ != stub) return false;
  if (addresses_.size() < 2) {
    // A new connection doesn't wait for its turn, as one does that has failed.
    if (absl::Now() - made_ > kConnect) stub_ = nullptr;
    return false;
  }
  address_ = (address_ + 1) % addresses_.size();
  stub_ = nullptr;
  VLOG(1) << "asks the coordinator at " << addresses_[address_];
  return true;
}

absl::Status CoordinatorStub::CheckConnections() const {
  std::vector<std::string> reasons;
  for (const std::string& address : addresses_) {
    const absl::Status checked = CheckConnection(address, tls_, Role::kCoordinator);
    // Then the leader may be there.
    if (checked.ok()) return absl::OkStatus();
    reasons.emplace_back(checked.message());
  }
  return reasons.empty() ? absl::OkStatus()
                         : absl::UnauthenticatedError(absl::StrJoin(reasons, "; "));
}

}  // namespace moe
