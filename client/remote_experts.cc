#include "client/remote_experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/pieces.h"
#include "common/base/status_macros.h"
#include "common/tensor/bytes.h"
#include "glog/logging.h"

namespace moe {
namespace {

// The rows of x, [tokens, d], that go to the server.
void GatherRows(const float* x, int64_t d, const std::vector<uint32_t>& token,
                std::string* bytes) {
  const size_t row_bytes = d * sizeof(float);
  // Appended, they are written once.
  bytes->reserve(token.size() * row_bytes);
  for (const uint32_t t : token) {
    bytes->append(reinterpret_cast<const char*>(x + t * d), row_bytes);
  }
}

// out[token] += rows, both [.., d].
void AddRows(const Pieces& rows, const std::vector<int32_t>& token, int64_t d,
             float* out) {
  PiecesReader reader(rows);
  std::string buffer(d * sizeof(float), 0);
  for (const int32_t t : token) {
    const char* const row = reader.Next(buffer.size(), buffer.data());
    float* sum = out + t * d;
    for (int64_t i = 0; i < d; ++i) {
      float value;  // may be unaligned there
      std::memcpy(&value, row + i * sizeof(float), sizeof(float));
      sum[i] += value;
    }
  }
}

// The micro-batch's sums for the group that the routing is of.
void PutBalance(const ExpertLayout& layout, const ForwardCall& call,
                v1::GroupRouting* routing) {
  CHECK_EQ(call.importance.size(), static_cast<size_t>(layout.choices()));
  CHECK_EQ(call.load.size(), static_cast<size_t>(layout.choices()));
  const size_t count = layout.choices_per_group();
  const auto load = call.load.subspan(routing->group() * count, count);
  routing->mutable_load()->Add(load.begin(), load.end());
  if (layout.hierarchical) return;
  const auto importance = call.importance.subspan(routing->group() * count, count);
  routing->mutable_importance()->Add(importance.begin(), importance.end());
}

void PutMoments(const Moments& moments, v1::Moments* message) {
  message->set_mean(moments.mean);
  message->set_variance(moments.variance);
}

// A server's replies in the order of `results`, each with exactly the groups that were
// asked for. Reply: ForwardReply or BackwardReply; Result: ForwardResult or
// BackwardResult.
template <typename Reply, typename Result>
absl::StatusOr<std::vector<const Reply*>> MatchReplies(
    const google::protobuf::RepeatedPtrField<Reply>& replies,
    std::span<const Result> results, int32_t server) {
  if (static_cast<size_t>(replies.size()) != results.size()) {
    return absl::InternalError(
        absl::StrFormat("%d replies instead of %d", replies.size(), results.size()));
  }
  std::vector<const Reply*> matched;
  for (const Result& result : results) {
    const auto reply = std::find_if(
        replies.begin(), replies.end(),
        [&](const Reply& candidate) { return candidate.replica() == result.replica; });
    if (reply == replies.end()) {
      return absl::InternalError(
          absl::StrFormat("no reply for replica %d", result.replica));
    }
    const auto& groups = result.plan->servers()[server].groups;
    if (static_cast<size_t>(reply->groups_size()) != groups.size()) {
      return absl::InternalError(absl::StrFormat("%d groups instead of %d for replica %d",
                                                 reply->groups_size(), groups.size(),
                                                 result.replica));
    }
    for (size_t g = 0; g < groups.size(); ++g) {
      const uint32_t group = reply->groups(static_cast<int>(g)).group();
      if (group != static_cast<uint32_t>(groups[g].group)) {
        return absl::InternalError(
            absl::StrFormat("group %d in place of group %d for replica %d", group,
                            groups[g].group, result.replica));
      }
    }
    matched.push_back(&*reply);
  }
  return matched;
}

absl::Status CheckBytes(const char* field, size_t bytes, size_t expected) {
  if (bytes == expected) return absl::OkStatus();
  return absl::InternalError(
      absl::StrFormat("%s has %d bytes instead of %d", field, bytes, expected));
}

// Where to find one group of one replica: in a reply of a server that has it.
template <typename GroupReply>
struct GroupPart {
  const RoutingPlan::Group* plan = nullptr;
  const GroupReply* reply = nullptr;
  Pieces rows;  // y or dx
  int32_t server = 0;
};
// [results][groups]
template <typename GroupReply>
using GroupParts = std::vector<std::vector<GroupPart<GroupReply>>>;

const std::string& RowsOf(const v1::GroupOutput& output) { return output.y(); }
const std::string& RowsOf(const v1::GroupGradient& gradient) { return gradient.dx(); }

// Puts those of a server's groups into `parts` that aren't there from another's, each after `check`, which
// says what is wrong with a group's reply.
template <typename Reply, typename Result, typename Check, typename GroupReply>
absl::Status CollectGroups(const google::protobuf::RepeatedPtrField<Reply>& replies,
                           const Payloads& payloads, std::span<const Result> results,
                           int32_t server, const Check& check,
                           GroupParts<GroupReply>* parts) {
  ASSIGN_OR_RETURN(const std::vector<const Reply*> matched,
                   MatchReplies(replies, results, server));
  for (size_t r = 0; r < results.size(); ++r) {
    const auto& groups = results[r].plan->servers()[server].groups;
    for (size_t g = 0; g < groups.size(); ++g) {
      const GroupReply& reply = matched[r]->groups(static_cast<int>(g));
      Pieces rows = payloads.Of(reply, RowsOf(reply));
      RETURN_IF_ERROR(Annotate(
          check(groups[g], reply, rows.size()),
          absl::StrFormat("replica %d, group %d", results[r].replica, groups[g].group)));
      GroupPart<GroupReply>& part = (*parts)[r][groups[g].group];
      if (part.reply == nullptr) part = {&groups[g], &reply, std::move(rows), server};
    }
  }
  return absl::OkStatus();
}

MixtureId MixtureOf(const v1::FrameId& id) { return {id.layer(), id.mixture()}; }

// Servers that host a group of the mixture, ascending.
std::set<int32_t> HostsOf(const ExpertLayout& layout) {
  std::set<int32_t> hosts;
  for (int32_t g = 0; g < layout.groups; ++g) {
    const std::vector<int32_t> of_group = layout.HostsOf(g);
    hosts.insert(of_group.begin(), of_group.end());
  }
  return hosts;
}

// "the answer of server/s0 to forward ... is wrong"
std::string WrongAnswer(const ServerSet& servers, int32_t server,
                        const ExchangeKey& key) {
  return absl::StrCat("the answer of ", servers.streams[server]->peer(), " to ",
                      Describe(key), " is wrong");
}

// The answers of all servers of a layer that aren't lost; the parts point into the responses.
template <typename GroupReply>
struct Answers {
  std::vector<Received<v1::ExchangeResponse>> responses;
  GroupParts<GroupReply> parts;
};

// replies: of a response. check: as of CollectGroups.
template <typename GroupReply, typename Result, typename Replies, typename Check>
absl::StatusOr<Answers<GroupReply>> AwaitAnswers(
    ServerSet& servers, const ExpertLayout& layout, const ExchangeKey& key,
    std::span<const Result> results, const Replies& replies, const Check& check) {
  const absl::Time deadline = servers.Deadline();
  const std::set<int32_t> hosts = HostsOf(layout);
  Answers<GroupReply> answers;
  answers.responses.reserve(hosts.size());
  answers.parts.assign(results.size(), std::vector<GroupPart<GroupReply>>(layout.groups));
  for (const int32_t s : hosts) {
    ASSIGN_OR_RETURN(std::optional<Received<v1::ExchangeResponse>> response,
                     servers.Await(s, key, deadline));
    if (!response.has_value()) continue;
    const auto& [message, payloads, _] =
        answers.responses.emplace_back(*std::move(response));
    const absl::Status collected =
        CollectGroups(replies(message), payloads, results, s, check, &answers.parts);
    RETURN_IF_ERROR(Annotate(collected, WrongAnswer(servers, s, key)));
  }
  return answers;
}

}  // namespace

const ExpertLayout& RemoteExperts::layout(MixtureId mixture) const {
  const auto found = servers_.map.layouts.find(mixture);
  CHECK(found != servers_.map.layouts.end())
      << "layer " << mixture.layer << " has no mixture " << mixture.mixture;
  return found->second;
}

absl::Status RemoteExperts::SendForward(const v1::FrameId& id,
                                        std::span<const ForwardCall> calls) {
  const ExpertLayout& layout = this->layout(MixtureOf(id));
  for (const int32_t s : HostsOf(layout)) {
    v1::ExchangeRequest request;
    *request.mutable_forward()->mutable_id() = id;
    for (const ForwardCall& call : calls) {
      const RoutingPlan::Server& server = call.plan->servers()[s];
      v1::ForwardFrame& frame = *request.mutable_forward()->add_frames();
      frame.set_replica(call.replica);
      frame.set_tokens(call.plan->tokens());
      PutArray(server.token, frame.mutable_token());
      GatherRows(call.x, layout.in, server.token, frame.mutable_x());
      for (const RoutingPlan::Group& group : server.groups) {
        v1::GroupRouting& routing = *frame.add_groups();
        routing.set_group(group.group);
        PutArray(group.row, routing.mutable_row());
        PutArray(group.gate, routing.mutable_gate());
        if (!layout.hierarchical) {
          PutArray(group.expert, routing.mutable_expert());
        }
        if (id.mode() == v1::MODE_TRAIN) PutBalance(layout, call, &routing);
      }
    }
    RETURN_IF_ERROR(servers_.Send(s, std::move(request)));
  }
  return absl::OkStatus();
}

absl::Status RemoteExperts::SendForwardAgain(const v1::FrameId& id,
                                             std::span<const uint32_t> replicas) {
  for (const int32_t s : HostsOf(layout(MixtureOf(id)))) {
    v1::ExchangeRequest request;
    *request.mutable_forward()->mutable_id() = id;
    for (const uint32_t replica : replicas) {
      request.mutable_forward()->add_frames()->set_replica(replica);
    }
    RETURN_IF_ERROR(servers_.Send(s, std::move(request)));
  }
  return absl::OkStatus();
}

absl::Status RemoteExperts::AwaitForward(const v1::FrameId& id,
                                         std::span<const ForwardResult> results,
                                         BalanceTotals* totals) {
  const ExpertLayout& layout = this->layout(MixtureOf(id));
  const ExchangeKey key = FrameKey(v1::ExchangeRequest::kForward, id);
  ASSIGN_OR_RETURN(const auto answers,
                   AwaitAnswers<v1::GroupOutput>(
                       servers_, layout, key, results,
                       [](const v1::ExchangeResponse& response) -> const auto& {
                         return response.forward().replies();
                       },
                       [&](const RoutingPlan::Group& group, const v1::GroupOutput& output,
                           size_t bytes) {
                         absl::Status status = CheckBytes(
                             "y", bytes, group.token.size() * layout.out * sizeof(float));
                         if (id.mode() == v1::MODE_TRAIN)
                           status.Update(CheckTotals(layout, output));
                         return status;
                       }));

  const auto& parts = answers.parts;
  for (size_t r = 0; r < results.size(); ++r) {
    float* y = results[r].y;
    std::fill_n(y, results[r].plan->tokens() * layout.out, 0.0f);
    for (const auto& part : parts[r]) AddRows(part.rows, part.plan->token, layout.out, y);
    if (results[r].chosen == nullptr) continue;
    *results[r].chosen = {};
    for (int32_t g = 0; g < layout.groups; ++g) {
      RETURN_IF_ERROR(
          Annotate(AppendChosen(layout, *parts[r][g].plan, id.mode(),
                                parts[r][g].reply->chosen(), results[r].chosen),
                   absl::StrFormat("%s: replica %d, group %d",
                                   WrongAnswer(servers_, parts[r][g].server, key),
                                   results[r].replica, g)));
    }
  }

  if (totals == nullptr || id.mode() != v1::MODE_TRAIN || results.empty())
    return absl::OkStatus();
  std::vector<const v1::GroupOutput*> groups;
  for (int32_t g = 0; g < layout.groups; ++g) {
    groups.push_back(parts[0][g].reply);
    for (size_t r = 0; r < results.size(); ++r) {
      const v1::GroupOutput& output = *parts[r][g].reply;
      if (SameTotals(output, *groups[g]) && output.tokens() == groups[0]->tokens()) {
        continue;
      }
      return absl::InternalError(
          absl::StrFormat("%s: the totals of group %d differ from others",
                          WrongAnswer(servers_, parts[r][g].server, key), g));
    }
  }
  *totals = JoinTotals(layout, groups);
  return absl::OkStatus();
}

absl::Status RemoteExperts::SendBackward(const v1::FrameId& id,
                                         std::span<const BackwardCall> calls) {
  const ExpertLayout& layout = this->layout(MixtureOf(id));
  for (const int32_t s : HostsOf(layout)) {
    v1::ExchangeRequest request;
    *request.mutable_backward()->mutable_id() = id;
    for (const BackwardCall& call : calls) {
      v1::BackwardFrame& frame = *request.mutable_backward()->add_frames();
      frame.set_replica(call.replica);
      GatherRows(call.dy, layout.out, call.plan->servers()[s].token, frame.mutable_dy());
      if (call.moments == nullptr) continue;
      PutMoments(call.moments->importance, frame.mutable_importance());
      PutMoments(call.moments->load, frame.mutable_load());
    }
    RETURN_IF_ERROR(servers_.Send(s, std::move(request)));
  }
  return absl::OkStatus();
}

absl::Status RemoteExperts::AwaitBackward(const v1::FrameId& id,
                                          std::span<const BackwardResult> results) {
  const ExpertLayout& layout = this->layout(MixtureOf(id));
  const ExchangeKey key = FrameKey(v1::ExchangeRequest::kBackward, id);
  ASSIGN_OR_RETURN(const auto answers,
                   AwaitAnswers<v1::GroupGradient>(
                       servers_, layout, key, results,
                       [](const v1::ExchangeResponse& response) -> const auto& {
                         return response.backward().replies();
                       },
                       [&](const RoutingPlan::Group& group,
                           const v1::GroupGradient& gradient, size_t bytes) {
                         absl::Status status = CheckBytes(
                             "dx", bytes, group.token.size() * layout.in * sizeof(float));
                         status.Update(CheckBytes("dgate", gradient.dgate().size(),
                                                  group.choice.size() * sizeof(float)));
                         return status;
                       }));

  const auto& parts = answers.parts;
  for (size_t r = 0; r < results.size(); ++r) {
    const BackwardResult& result = results[r];
    std::fill_n(result.dx, result.plan->tokens() * layout.in, 0.0f);
    for (const auto& part : parts[r]) {
      AddRows(part.rows, part.plan->token, layout.in, result.dx);
      const char* dgate = part.reply->dgate().data();
      for (size_t i = 0; i < part.plan->choice.size(); ++i) {
        std::memcpy(&result.dgate[part.plan->choice[i]], dgate + i * sizeof(float),
                    sizeof(float));
      }
    }
    if (result.dload_primary == nullptr) continue;
    for (int32_t g = 0; g < layout.groups; ++g) {
      const double gradient = parts[r][g].reply->dload_primary();
      if (!std::isfinite(gradient) || gradient != parts[0][g].reply->dload_primary()) {
        return absl::InternalError(absl::StrFormat(
            "%s: dload_primary of group %d is %g for replica %d and %g for replica %d",
            WrongAnswer(servers_, parts[r][g].server, key), g, gradient, result.replica,
            parts[0][g].reply->dload_primary(), results[0].replica));
      }
      result.dload_primary[g] = gradient;
    }
  }
  return absl::OkStatus();
}

}  // namespace moe
