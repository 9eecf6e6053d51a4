#include "server/coordinator/etcd_store.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

using etcdserverpb::Compare;

// The first key after all that begin with `prefix`, which isn't empty and has no byte 255 at its end.
std::string After(std::string prefix) {
  ++prefix.back();
  return prefix;
}

Store::Entry EntryOf(const mvccpb::KeyValue& pair) {
  return {.value = pair.value(), .version = static_cast<uint64_t>(pair.version())};
}

}  // namespace

absl::StatusOr<std::optional<Store::Entry>> EtcdStore::Get(const std::string& key) {
  etcdserverpb::RangeRequest request;
  request.set_key(Name(key));
  ASSIGN_OR_RETURN(const etcdserverpb::RangeResponse response,
                   client_.Range(request, absl::Now() + options_.timeout));
  if (response.kvs().empty()) return std::optional<Entry>();
  return std::optional<Entry>(EntryOf(response.kvs(0)));
}

absl::StatusOr<uint64_t> EtcdStore::CompareAndSwap(const std::string& key,
                                                   uint64_t version,
                                                   const std::string& value) {
  etcdserverpb::TxnRequest request;
  Compare* const leads = request.add_compare();
  leads->set_target(Compare::CREATE);
  leads->set_key(options_.leader_key);
  leads->set_create_revision(options_.leader_revision);
  Compare* const same = request.add_compare();
  same->set_target(Compare::VERSION);
  same->set_key(Name(key));
  same->set_version(static_cast<int64_t>(version));
  etcdserverpb::PutRequest* const put = request.add_success()->mutable_request_put();
  put->set_key(Name(key));
  put->set_value(value);
  for (const std::string& asked : {options_.leader_key, Name(key)}) {
    request.add_failure()->mutable_request_range()->set_key(asked);
  }
  ASSIGN_OR_RETURN(const etcdserverpb::TxnResponse response,
                   client_.Txn(request, absl::Now() + options_.timeout));
  if (response.succeeded()) return version + 1;
  if (response.responses_size() != 2) {
    return absl::InternalError("etcd answered a transaction with other parts than asked");
  }
  const auto& leader = response.responses(0).response_range().kvs();
  if (leader.empty() || leader[0].create_revision() != options_.leader_revision) {
    const std::string cause = absl::StrCat(
        "this coordinator doesn't lead any more: ",
        leader.empty() ? "its lease is over" : absl::StrCat(leader[0].value(), " does"));
    if (options_.on_deposed) options_.on_deposed(cause);
    return absl::FailedPreconditionError(cause);
  }
  const auto& present = response.responses(1).response_range().kvs();
  const uint64_t found =
      present.empty() ? 0 : static_cast<uint64_t>(present[0].version());
  // Only the leader writes, so this was the same call, whose answer was lost.
  if (found == version + 1 && present[0].value() == value) return found;
  return absl::AbortedError(
      absl::StrCat("state key ", key, " has version ", found, ", not ", version));
}

absl::StatusOr<std::map<std::string, Store::Entry>> EtcdStore::List(
    const std::string& prefix) {
  etcdserverpb::RangeRequest request;
  request.set_key(Name(prefix));
  request.set_range_end(After(Name(prefix)));
  ASSIGN_OR_RETURN(const etcdserverpb::RangeResponse response,
                   client_.Range(request, absl::Now() + options_.timeout));
  std::map<std::string, Entry> found;
  for (const mvccpb::KeyValue& pair : response.kvs()) {
    found[pair.key().substr(options_.prefix.size() + 1)] = EntryOf(pair);
  }
  return found;
}

}  // namespace moe
