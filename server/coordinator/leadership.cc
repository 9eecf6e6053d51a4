#include "server/coordinator/leadership.h"

#include <glog/logging.h>
#include <time.h>

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

using etcdserverpb::Compare;

constexpr absl::Duration kLook = absl::Milliseconds(250);
// Of one question; a standby asks again.
constexpr absl::Duration kAsk = absl::Seconds(3);

// Goes on while the process, or the machine, stands still, and nobody sets it.
absl::Duration SinceBoot() {
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return absl::DurationFromTimespec(now);
}

// Creates the key if it isn't there. Whoever has it.
absl::StatusOr<mvccpb::KeyValue> Claim(EtcdClient& client,
                                       const Leadership::Options& options,
                                       int64_t lease) {
  etcdserverpb::TxnRequest request;
  Compare* const absent = request.add_compare();
  absent->set_target(Compare::CREATE);
  absent->set_key(options.key);
  absent->set_create_revision(0);
  etcdserverpb::PutRequest* const put = request.add_success()->mutable_request_put();
  put->set_key(options.key);
  put->set_value(options.address);
  put->set_lease(lease);
  request.add_failure()->mutable_request_range()->set_key(options.key);
  ASSIGN_OR_RETURN(const etcdserverpb::TxnResponse response,
                   client.Txn(request, absl::Now() + kAsk));
  mvccpb::KeyValue holder;
  if (response.succeeded()) {
    holder.set_lease(lease);
    holder.set_create_revision(response.header().revision());
    return holder;
  }
  const auto& found = response.responses(0).response_range().kvs();
  return found.empty() ? holder : found[0];
}

}  // namespace

absl::StatusOr<std::unique_ptr<Leadership>> Leadership::Await(
    EtcdClient& client, Options options,
    const std::function<void(const std::string& leader)>& standby,
    const std::function<bool()>& cancelled) {
  std::optional<std::string> told;
  const auto tell = [&](const std::string& leader) {
    if (told == leader) return;
    told = leader;
    standby(leader);
  };
  etcdserverpb::RangeRequest look;
  look.set_key(options.key);
  while (!cancelled()) {
    const auto present = client.Range(look, absl::Now() + kAsk);
    if (!present.ok() && !absl::IsUnavailable(present.status())) return present.status();
    if (!present.ok()) {
      LOG(WARNING) << present.status().message();
      tell("");
    } else if (!present->kvs().empty()) {
      tell(present->kvs(0).value());
    } else {
      const absl::Duration asked = SinceBoot();
      const absl::StatusOr<int64_t> lease =
          client.Grant(options.lease, absl::Now() + kAsk);
      if (!lease.ok() && !absl::IsUnavailable(lease.status())) return lease.status();
      if (lease.ok()) {
        const auto holder = Claim(client, options, *lease);
        // Also if the answer to the claim was lost, and it was made again.
        if (holder.ok() && holder->lease() == *lease) {
          return std::unique_ptr<Leadership>(new Leadership(
              client, std::move(options), *lease, holder->create_revision(), asked));
        }
        if (holder.ok()) {
          client.Revoke(*lease, absl::Now() + kAsk);
          tell(holder->value());
        }
        // Else the claim may come to be; the lease ends it.
      }
    }
    absl::SleepFor(kLook);
  }
  return absl::CancelledError("this process was told to stop");
}

Leadership::Leadership(EtcdClient& client, Options options, int64_t lease,
                       int64_t revision, absl::Duration granted)
    : client_(client),
      options_(std::move(options)),
      lease_(lease),
      revision_(revision),
      sure_until_(granted + options_.lease),
      thread_([this] { KeepAlive(); }) {}

Leadership::~Leadership() {
  Resign();
  thread_.join();
}

void Leadership::Resign() {
  bool over = false;
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
    over = std::exchange(over_, true);
  }
  if (!over) client_.Revoke(lease_, absl::Now() + kAsk);
}

bool Leadership::sure() const {
  absl::MutexLock lock(&mutex_);
  return !over_ && SinceBoot() < sure_until_;
}

void Leadership::KeepAlive() {
  absl::MutexLock lock(&mutex_);
  while (!mutex_.AwaitWithTimeout(absl::Condition(&stop_), options_.lease / 5)) {
    mutex_.Unlock();
    const absl::Duration asked = SinceBoot();
    const absl::StatusOr<absl::Duration> left =
        client_.KeepAlive(lease_, absl::Now() + options_.lease / 2);
    mutex_.Lock();
    // Nobody is deposed who has resigned.
    if (over_) return;
    if (!left.ok()) {
      LOG(WARNING) << left.status().message();
      continue;
    }
    if (*left > absl::ZeroDuration()) {
      sure_until_ = std::max(sure_until_, asked + options_.lease);
      continue;
    }
    over_ = true;
    mutex_.Unlock();
    if (options_.on_deposed) {
      options_.on_deposed(
          "etcd doesn't know the lease of this coordinator any more: another leads, or "
          "etcd has lost its data");
    }
    mutex_.Lock();
    mutex_.Await(absl::Condition(&stop_));
  }
}

}  // namespace moe
