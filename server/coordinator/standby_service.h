// What a coordinator answers that doesn't lead: UNAVAILABLE, and who does.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "proto/moe/v1/operator.grpc.pb.h"
#include "proto/moe/v1/status.grpc.pb.h"

namespace moe {

// Thread-safe.
class StandbyNotice {
 public:
  // "standby; the leader is b:7070"
  grpc::Status Get() const {
    absl::MutexLock lock(&mutex_);
    return {grpc::StatusCode::UNAVAILABLE,
            leader_.empty() ? "standby; there is no leader at the moment"
                            : "standby; the leader is " + leader_};
  }
  // Empty: nobody leads.
  void set_leader(const std::string& leader) {
    absl::MutexLock lock(&mutex_);
    leader_ = leader;
  }

 private:
  mutable absl::Mutex mutex_;
  std::string leader_ ABSL_GUARDED_BY(mutex_);
};

#define MOE_STANDBY_METHOD(name)                                                         \
  grpc::Status name(grpc::ServerContext*, const v1::name##Request*, v1::name##Response*) \
      override {                                                                         \
    return notice_.Get();                                                                \
  }

class StandbyCoordinatorService final : public v1::CoordinatorService::Service {
 public:
  // notice outlives this object.
  explicit StandbyCoordinatorService(const StandbyNotice& notice) : notice_(notice) {}
  MOE_STANDBY_METHOD(Register)
  MOE_STANDBY_METHOD(Heartbeat)
  MOE_STANDBY_METHOD(Leave)
  MOE_STANDBY_METHOD(FailJob)
  MOE_STANDBY_METHOD(ReportStep)
  MOE_STANDBY_METHOD(ReportEvaluation)
  MOE_STANDBY_METHOD(ReportShardFile)
  MOE_STANDBY_METHOD(AwaitCheckpoint)
  MOE_STANDBY_METHOD(AwaitHandover)
  MOE_STANDBY_METHOD(FinishWork)

 private:
  const StandbyNotice& notice_;
};

class StandbyStatusService final : public v1::ClusterStatusService::Service {
 public:
  explicit StandbyStatusService(const StandbyNotice& notice) : notice_(notice) {}
  MOE_STANDBY_METHOD(GetClusterStatus)

 private:
  const StandbyNotice& notice_;
};

class StandbyOperatorService final : public v1::OperatorService::Service {
 public:
  explicit StandbyOperatorService(const StandbyNotice& notice) : notice_(notice) {}
  MOE_STANDBY_METHOD(TakeCheckpoint)
  MOE_STANDBY_METHOD(Scale)

 private:
  const StandbyNotice& notice_;
};

#undef MOE_STANDBY_METHOD

}  // namespace moe
