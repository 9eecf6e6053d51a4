#include "client/server_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

// Whether it may come of a server that is gone, or has left the generation, rather than of what it was
// sent.
bool IsLoss(const absl::Status& why) {
  return absl::IsUnavailable(why) || absl::IsDeadlineExceeded(why) ||
         absl::IsAborted(why) || absl::IsCancelled(why) ||
         // Others committed the checkpoint that it was writing, for they take it for lost.
         absl::IsNotFound(why);
}

}  // namespace

std::vector<int32_t> ServerSet::HostsOf(int32_t shard) const {
  std::vector<int32_t> hosts = map.CopiesOf(shard);
  std::erase_if(hosts, [this](int32_t host) { return lost.contains(host); });
  return hosts;
}

absl::Status ServerSet::Send(int32_t server, v1::ExchangeRequest request) {
  if (lost.contains(server)) return absl::OkStatus();
  const absl::Status sent = streams[server]->Send(std::move(request));
  return sent.ok() ? sent : GoOnWithout(server, sent);
}

absl::Status ServerSet::SendToOne(int32_t shard, const v1::ExchangeRequest& request,
                                  int32_t* server) {
  do {
    *server = HostsOf(shard).front();
    RETURN_IF_ERROR(Send(*server, request));
  } while (lost.contains(*server));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Received<v1::ExchangeResponse>>> ServerSet::Await(
    int32_t server, const ExchangeKey& key, absl::Time deadline) {
  if (lost.contains(server)) return std::nullopt;
  ShardStream& stream = *streams[server];
  if (on_wait) on_wait(absl::StrCat(Describe(key), " from ", stream.peer()));
  absl::StatusOr<Received<v1::ExchangeResponse>> response = stream.Await(key, deadline);
  if (on_wait) on_wait("");
  if (response.ok()) return std::optional(*std::move(response));
  const absl::Status without = GoOnWithout(server, response.status());
  if (!without.ok()) return without;
  return std::nullopt;
}

absl::Status ServerSet::GoOnWithout(int32_t server, const absl::Status& why) {
  if (!IsLoss(why) || !go_on_without) return why;
  const std::vector<int32_t>& shards = map.servers[server].shards;
  const bool spare = std::all_of(shards.begin(), shards.end(), [&](int32_t shard) {
    return HostsOf(shard).size() > 1;
  });
  if (!spare || !go_on_without(map.servers[server].id, why)) return why;
  lost.insert(server);
  streams[server]->Cancel(why);
  return absl::OkStatus();
}

}  // namespace moe
