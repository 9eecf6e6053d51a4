#include "server/coordinator/etcd_client.h"

#include <glog/logging.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

constexpr absl::Duration kPause = absl::Milliseconds(100);
constexpr absl::Duration kNotice = absl::Seconds(5);

bool IsTransient(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::ABORTED:
      return true;
    default:
      return false;
  }
}

}  // namespace

EtcdClient::EtcdClient(Options options) : options_(std::move(options)) {
  CHECK(!options_.endpoints.empty());
}

std::shared_ptr<grpc::Channel> EtcdClient::channel() {
  absl::MutexLock lock(&mutex_);
  if (channel_ != nullptr) return channel_;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  std::shared_ptr<grpc::ChannelCredentials> credentials =
      options_.ca.empty()
          ? grpc::InsecureChannelCredentials()
          : grpc::SslCredentials({.pem_root_certs = options_.ca,
                                  .pem_private_key = options_.key,
                                  .pem_cert_chain = options_.certificate});
  channel_ =
      grpc::CreateCustomChannel(options_.endpoints[endpoint_], credentials, arguments);
  return channel_;
}

void EtcdClient::Leave(const std::shared_ptr<grpc::Channel>& channel) {
  absl::MutexLock lock(&mutex_);
  if (channel_ != channel) return;
  endpoint_ = (endpoint_ + 1) % options_.endpoints.size();
  // A new one also where there is but one endpoint: it doesn't wait before it connects.
  channel_ = nullptr;
}

absl::Status EtcdClient::Repeat(const std::string& what, absl::Time deadline,
                                const Call& call) {
  const absl::Time start = absl::Now();
  absl::Time notice = start + kNotice;
  while (true) {
    const std::shared_ptr<grpc::Channel> asked = channel();
    grpc::Status status;
    {
      grpc::ClientContext context;
      context.set_deadline(
          absl::ToChronoTime(std::min(deadline, absl::Now() + options_.attempt)));
      status = call(asked, &context);
    }
    if (status.ok()) return absl::OkStatus();
    const std::string whom =
        absl::StrCat("etcd at ", absl::StrJoin(options_.endpoints, ", "));
    if (!IsTransient(status)) {
      return absl::FailedPreconditionError(
          absl::StrCat(whom, ": ", what, ": ", status.error_message()));
    }
    Leave(asked);
    const absl::Time now = absl::Now();
    if (now + kPause >= deadline) {
      return absl::UnavailableError(absl::StrCat(whom, " has not answered for ",
                                                 FormatTimeSpan(now - start), ": ", what,
                                                 ": ", status.error_message()));
    }
    if (now >= notice) {
      LOG(WARNING) << whom << " has not answered for " << FormatTimeSpan(now - start)
                   << ": " << what << ": " << status.error_message();
      notice = now + kNotice;
    }
    absl::MutexLock lock(&mutex_);
    if (!cancelled_) changed_.WaitWithTimeout(&mutex_, kPause);
    if (cancelled_) return absl::CancelledError(absl::StrCat(what, " was given up"));
  }
}

int64_t EtcdClient::revision() {
  absl::MutexLock lock(&mutex_);
  return revision_;
}

absl::Status EtcdClient::CheckRevision(const etcdserverpb::ResponseHeader& header,
                                       int64_t before) {
  std::string cause;
  {
    absl::MutexLock lock(&mutex_);
    if (header.revision() >= before) {
      revision_ = std::max(revision_, header.revision());
      return absl::OkStatus();
    }
    cause = absl::StrCat("etcd at ", absl::StrJoin(options_.endpoints, ", "),
                         " has lost data: its revision has gone back from ", before,
                         " to ", header.revision());
    if (std::exchange(lost_, true)) return absl::DataLossError(cause);
  }
  if (options_.on_data_loss) options_.on_data_loss(cause);
  return absl::DataLossError(cause);
}

absl::StatusOr<etcdserverpb::RangeResponse> EtcdClient::Range(
    const etcdserverpb::RangeRequest& request, absl::Time deadline) {
  etcdserverpb::RangeResponse response;
  const int64_t before = revision();
  RETURN_IF_ERROR(Repeat(absl::StrCat("reading ", request.key()), deadline,
                         [&](const auto& channel, grpc::ClientContext* context) {
                           response.Clear();
                           return etcdserverpb::KV::NewStub(channel)->Range(
                               context, request, &response);
                         }));
  RETURN_IF_ERROR(CheckRevision(response.header(), before));
  return response;
}

absl::StatusOr<etcdserverpb::TxnResponse> EtcdClient::Txn(
    const etcdserverpb::TxnRequest& request, absl::Time deadline) {
  etcdserverpb::TxnResponse response;
  const int64_t before = revision();
  const std::string key =
      request.success_size() > 0 ? request.success(0).request_put().key() : "";
  RETURN_IF_ERROR(Repeat(absl::StrCat("writing ", key), deadline,
                         [&](const auto& channel, grpc::ClientContext* context) {
                           response.Clear();
                           return etcdserverpb::KV::NewStub(channel)->Txn(
                               context, request, &response);
                         }));
  RETURN_IF_ERROR(CheckRevision(response.header(), before));
  return response;
}

absl::StatusOr<int64_t> EtcdClient::Grant(absl::Duration ttl, absl::Time deadline) {
  etcdserverpb::LeaseGrantRequest request;
  request.set_ttl(std::max<int64_t>(1, absl::ToInt64Seconds(ttl)));
  etcdserverpb::LeaseGrantResponse response;
  RETURN_IF_ERROR(
      Repeat("a lease", deadline, [&](const auto& channel, grpc::ClientContext* context) {
        response.Clear();
        return etcdserverpb::Lease::NewStub(channel)->LeaseGrant(context, request,
                                                                 &response);
      }));
  if (!response.error().empty()) return absl::FailedPreconditionError(response.error());
  return response.id();
}

absl::StatusOr<absl::Duration> EtcdClient::KeepAlive(int64_t lease, absl::Time deadline) {
  etcdserverpb::LeaseKeepAliveRequest request;
  request.set_id(lease);
  etcdserverpb::LeaseKeepAliveResponse response;
  RETURN_IF_ERROR(Repeat(
      "keeping the lease", deadline,
      [&](const auto& channel, grpc::ClientContext* context) {
        const auto stream =
            etcdserverpb::Lease::NewStub(channel)->LeaseKeepAlive(context);
        const bool answered = stream->Write(request) && stream->Read(&response);
        stream->WritesDone();
        context->TryCancel();
        const grpc::Status status = stream->Finish();
        if (answered) return grpc::Status::OK;
        return status.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "no answer")
                           : status;
      }));
  return absl::Seconds(response.ttl());
}

void EtcdClient::Revoke(int64_t lease, absl::Time deadline) {
  etcdserverpb::LeaseRevokeRequest request;
  request.set_id(lease);
  etcdserverpb::LeaseRevokeResponse response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  (void)etcdserverpb::Lease::NewStub(channel())->LeaseRevoke(&context, request,
                                                             &response);
}

void EtcdClient::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  changed_.SignalAll();
}

}  // namespace moe
