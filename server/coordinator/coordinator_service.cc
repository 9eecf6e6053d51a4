#include "server/coordinator/coordinator_service.h"

#include <utility>

#include "absl/status/statusor.h"
#include "common/net/grpc_status.h"
#include "common/net/peer_roles.h"
#include "server/coordinator/member_table.h"

namespace moe {
namespace {

template <typename Response>
grpc::Status Reply(absl::StatusOr<Response> result, Response* response) {
  if (!result.ok()) return ToGrpcStatus(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

// What it answers while it can't know whether it leads.
grpc::Status CheckLeads(const Leads& leads) {
  if (!leads || leads()) return grpc::Status::OK;
  return {
      grpc::StatusCode::UNAVAILABLE,
      "this coordinator doesn't know at present whether it leads: etcd doesn't answer "
      "it"};
}

// The methods of CoordinatorService: calls one if the coordinator may act, and the peer speaks for the
// member.
template <typename Method>
grpc::Status ForMember(const Leads& leads, const grpc::ServerContext& context,
                       const std::string& member, const Method& method) {
  if (const grpc::Status status = CheckLeads(leads); !status.ok()) return status;
  const absl::Status may = CheckSpeaksFor(context, member);
  return may.ok() ? method() : ToGrpcStatus(may);
}

JobController::Cancelled CancelledBy(grpc::ServerContext* context) {
  return [context] { return context->IsCancelled(); };
}

}  // namespace

grpc::Status CoordinatorServiceImpl::Register(grpc::ServerContext* context,
                                              const v1::RegisterRequest* request,
                                              v1::RegisterResponse* response) {
  return ForMember(leads_, *context, MemberId(request->kind(), ""),
                   [&] { return Reply(controller_.Register(*request), response); });
}

grpc::Status CoordinatorServiceImpl::Heartbeat(grpc::ServerContext* context,
                                               const v1::HeartbeatRequest* request,
                                               v1::HeartbeatResponse* response) {
  return ForMember(leads_, *context, request->member(), [&] {
    return Reply(controller_.Heartbeat(*request, CancelledBy(context)), response);
  });
}

grpc::Status CoordinatorServiceImpl::Leave(grpc::ServerContext* context,
                                           const v1::LeaveRequest* request,
                                           v1::LeaveResponse*) {
  return ForMember(leads_, *context, request->member(), [&] {
    controller_.Leave(*request);
    return grpc::Status::OK;
  });
}

grpc::Status CoordinatorServiceImpl::FailJob(grpc::ServerContext* context,
                                             const v1::FailJobRequest* request,
                                             v1::FailJobResponse* response) {
  return ForMember(leads_, *context, request->member(), [&] {
    *response = controller_.FailJob(*request);
    return grpc::Status::OK;
  });
}

grpc::Status CoordinatorServiceImpl::ReportStep(grpc::ServerContext* context,
                                                const v1::ReportStepRequest* request,
                                                v1::ReportStepResponse* response) {
  return ForMember(leads_, *context, request->member(),
                   [&] { return Reply(controller_.ReportStep(*request), response); });
}

grpc::Status CoordinatorServiceImpl::ReportEvaluation(
    grpc::ServerContext* context, const v1::ReportEvaluationRequest* request,
    v1::ReportEvaluationResponse* response) {
  return ForMember(leads_, *context, request->member(), [&] {
    return Reply(controller_.ReportEvaluation(*request, CancelledBy(context)), response);
  });
}

grpc::Status CoordinatorServiceImpl::ReportShardFile(
    grpc::ServerContext* context, const v1::ReportShardFileRequest* request,
    v1::ReportShardFileResponse*) {
  return ForMember(leads_, *context, request->member(),
                   [&] { return ToGrpcStatus(controller_.ReportShardFile(*request)); });
}

grpc::Status CoordinatorServiceImpl::AwaitCheckpoint(
    grpc::ServerContext* context, const v1::AwaitCheckpointRequest* request,
    v1::AwaitCheckpointResponse* response) {
  return ForMember(leads_, *context, request->member(), [&] {
    return Reply(controller_.AwaitCheckpoint(*request, CancelledBy(context)), response);
  });
}

grpc::Status CoordinatorServiceImpl::AwaitHandover(
    grpc::ServerContext* context, const v1::AwaitHandoverRequest* request,
    v1::AwaitHandoverResponse* response) {
  return ForMember(leads_, *context, request->member(), [&] {
    return Reply(controller_.AwaitHandover(*request, CancelledBy(context)), response);
  });
}

grpc::Status CoordinatorServiceImpl::FinishWork(grpc::ServerContext* context,
                                                const v1::FinishWorkRequest* request,
                                                v1::FinishWorkResponse*) {
  return ForMember(leads_, *context, request->member(),
                   [&] { return ToGrpcStatus(controller_.FinishWork(*request)); });
}

grpc::Status ClusterStatusServiceImpl::GetClusterStatus(
    grpc::ServerContext*, const v1::GetClusterStatusRequest*,
    v1::GetClusterStatusResponse* response) {
  if (const grpc::Status status = CheckLeads(leads_); !status.ok()) return status;
  *response = controller_.GetClusterStatus();
  return grpc::Status::OK;
}

grpc::Status OperatorServiceImpl::TakeCheckpoint(grpc::ServerContext* context,
                                                 const v1::TakeCheckpointRequest*,
                                                 v1::TakeCheckpointResponse* response) {
  if (const grpc::Status status = CheckLeads(leads_); !status.ok()) return status;
  return Reply(controller_.TakeCheckpoint(CancelledBy(context)), response);
}

grpc::Status OperatorServiceImpl::Scale(grpc::ServerContext*,
                                        const v1::ScaleRequest* request,
                                        v1::ScaleResponse* response) {
  if (const grpc::Status status = CheckLeads(leads_); !status.ok()) return status;
  return Reply(controller_.Scale(*request), response);
}

}  // namespace moe
