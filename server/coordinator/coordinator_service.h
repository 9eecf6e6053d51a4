// The RPCs of CoordinatorService, ClusterStatusService and OperatorService.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <utility>

#include "proto/moe/v1/coordinator.grpc.pb.h"
#include "proto/moe/v1/operator.grpc.pb.h"
#include "proto/moe/v1/status.grpc.pb.h"
#include "server/coordinator/job_controller.h"

namespace moe {

// Whether the coordinator may act; null: always. While it may not, every call is UNAVAILABLE.
using Leads = std::function<bool()>;

class CoordinatorServiceImpl final : public v1::CoordinatorService::Service {
 public:
  // controller outlives this object.
  explicit CoordinatorServiceImpl(JobController& controller, Leads leads = {})
      : controller_(controller), leads_(std::move(leads)) {}

  grpc::Status Register(grpc::ServerContext* context, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override;
  grpc::Status Heartbeat(grpc::ServerContext* context,
                         const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* response) override;
  grpc::Status Leave(grpc::ServerContext* context, const v1::LeaveRequest* request,
                     v1::LeaveResponse* response) override;
  grpc::Status FailJob(grpc::ServerContext* context, const v1::FailJobRequest* request,
                       v1::FailJobResponse* response) override;
  grpc::Status ReportStep(grpc::ServerContext* context,
                          const v1::ReportStepRequest* request,
                          v1::ReportStepResponse* response) override;
  grpc::Status ReportEvaluation(grpc::ServerContext* context,
                                const v1::ReportEvaluationRequest* request,
                                v1::ReportEvaluationResponse* response) override;
  grpc::Status ReportShardFile(grpc::ServerContext* context,
                               const v1::ReportShardFileRequest* request,
                               v1::ReportShardFileResponse* response) override;
  grpc::Status AwaitCheckpoint(grpc::ServerContext* context,
                               const v1::AwaitCheckpointRequest* request,
                               v1::AwaitCheckpointResponse* response) override;
  grpc::Status AwaitHandover(grpc::ServerContext* context,
                             const v1::AwaitHandoverRequest* request,
                             v1::AwaitHandoverResponse* response) override;
  grpc::Status FinishWork(grpc::ServerContext* context,
                          const v1::FinishWorkRequest* request,
                          v1::FinishWorkResponse* response) override;

 private:
  JobController& controller_;
  const Leads leads_;
};

class ClusterStatusServiceImpl final : public v1::ClusterStatusService::Service {
 public:
  // controller outlives this object.
  explicit ClusterStatusServiceImpl(JobController& controller, Leads leads = {})
      : controller_(controller), leads_(std::move(leads)) {}

  grpc::Status GetClusterStatus(grpc::ServerContext* context,
                                const v1::GetClusterStatusRequest* request,
                                v1::GetClusterStatusResponse* response) override;

 private:
  JobController& controller_;
  const Leads leads_;
};

class OperatorServiceImpl final : public v1::OperatorService::Service {
 public:
  // controller outlives this object.
  explicit OperatorServiceImpl(JobController& controller, Leads leads = {})
      : controller_(controller), leads_(std::move(leads)) {}

  grpc::Status TakeCheckpoint(grpc::ServerContext* context,
                              const v1::TakeCheckpointRequest* request,
                              v1::TakeCheckpointResponse* response) override;
  grpc::Status Scale(grpc::ServerContext* context, const v1::ScaleRequest* request,
                     v1::ScaleResponse* response) override;

 private:
  JobController& controller_;
  const Leads leads_;
};

}  // namespace moe
