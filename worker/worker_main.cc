#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/allocator.h"
#include "common/base/program.h"
#include "common/base/protocol.h"
#include "common/base/service_notifier.h"
#include "common/base/signals.h"
#include "common/kernels/device.h"
#include "common/net/net_flags.h"
#include "worker/worker_process.h"

ABSL_FLAG(std::string, name, "w0",
          "Name of this worker, unique among the job's workers.");
ABSL_FLAG(
    std::string, coordinator, "127.0.0.1:7070",
    "host:port of the coordinator, or of several of which one leads: a:7070,b:7070.");
ABSL_FLAG(std::string, data, "", "Folder with the prepared text (see prepare_text).");
ABSL_FLAG(int, threads, 1,
          "Threads that compute; no more than the replicas it owns are of use.");
ABSL_FLAG(std::string, device, "cpu", std::string(moe::kDeviceHelp));
ABSL_FLAG(
    bool, tf32, false,
    "On a GPU: products on its tensor cores, which take only 10 bits of the factors' "
    "significands. Another numerics class.");
ABSL_FLAG(
    double, memory_gib, 0,
    "Memory that it may use, in GiB; a job that is computed to need more is refused. "
    "0: what the machine has available, shared with the other members there.");
ABSL_FLAG(absl::Duration, join_timeout, absl::Seconds(60),
          "How long to try to reach the coordinator.");
ABSL_FLAG(
    absl::Duration, coordinator_timeout, absl::Minutes(2),
    "How long to go on without the coordinator, which may be started again meanwhile.");
ABSL_FLAG(absl::Duration, start_timeout, absl::Minutes(10),
          "How long to wait for the other members before the job starts or goes on.");
ABSL_FLAG(absl::Duration, step_timeout, absl::Seconds(60),
          "How long to wait for any answer of a server before giving up.");
ABSL_FLAG(
    absl::Duration, reconnect_timeout, moe::kReconnectTimeout,
    "How long to try to take up a stream to a server that broke. Then the job goes on "
    "from its last checkpoint. 0: at once.");
ABSL_FLAG(
    absl::Duration, cut_timeout, absl::Hours(1),
    "How much longer to wait while a checkpoint is being written, as servers may have "
    "to wait for their disks.");
ABSL_FLAG(bool, linger, false,
          "Once the job is finished don't end until SIGINT or SIGTERM: for a supervisor "
          "that starts again what ends well, too.");
ABSL_FLAG(
    std::string, contexts_file, "",
    "In an evaluation: write to this file, as JSON, the places of the text at which the "
    "gate of each expert is highest (of this worker's replicas). A run that trains "
    "refuses "
    "it.");
ABSL_FLAG(int, contexts_per_expert, 10, "How many places of each expert.");
ABSL_FLAG(int, contexts_layer, -1,
          "Only this layer, counted from 0 as in the job. -1: all.");
ABSL_FLAG(int, contexts_expert, -1, "Only this expert. -1: all.");

constexpr char kUsage[] =
    R"(Computes the LSTM, gating and softmax layers of a job for its share of the replicas.

Usage: worker --coordinator HOST:PORT --data DIR [--name NAME] [--threads N]

It waits for the coordinator and for the other members, in any order of starting, trains until the
job is finished, and leaves. Exit status: 0 when the job finished or on SIGINT or SIGTERM, 1 when it
failed (the cause is the last line on stderr), 2 for a mistake on the command line.

Example:
  worker --coordinator 127.0.0.1:7070 --data out/data --name w0)";

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  moe::BlockTerminationSignals();
  moe::ParseCommandLine(argc, argv, kUsage);
  moe::Worker::Options options;
  options.name = absl::GetFlag(FLAGS_name);
  options.coordinator = absl::GetFlag(FLAGS_coordinator);
  options.data = absl::GetFlag(FLAGS_data);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.device = {.device = absl::GetFlag(FLAGS_device),
                    .tf32 = absl::GetFlag(FLAGS_tf32)};
  options.memory = moe::BytesOfGib("memory_gib", absl::GetFlag(FLAGS_memory_gib));
  options.join_timeout = absl::GetFlag(FLAGS_join_timeout);
  options.coordinator_timeout = absl::GetFlag(FLAGS_coordinator_timeout);
  options.start_timeout = absl::GetFlag(FLAGS_start_timeout);
  options.step_timeout = absl::GetFlag(FLAGS_step_timeout);
  options.cut_timeout = absl::GetFlag(FLAGS_cut_timeout);
  options.reconnect_timeout = absl::GetFlag(FLAGS_reconnect_timeout);
  if (options.step_timeout <= absl::ZeroDuration()) {
    moe::ExitWithUsageError("--step_timeout must be positive");
  }
  if (options.cut_timeout < absl::ZeroDuration()) {
    moe::ExitWithUsageError("--cut_timeout must not be negative");
  }
  if (options.reconnect_timeout < absl::ZeroDuration()) {
    moe::ExitWithUsageError("--reconnect_timeout must not be negative");
  }
  if (options.data.empty())
    moe::ExitWithUsageError("--data is missing: the prepared text's folder");
  if (options.threads < 1) {
    moe::ExitWithUsageError(
        absl::StrCat("--threads is ", options.threads, "; it must be at least 1"));
  }
  options.contexts_file = absl::GetFlag(FLAGS_contexts_file);
  options.contexts = {.per_expert = absl::GetFlag(FLAGS_contexts_per_expert),
                      .layer = absl::GetFlag(FLAGS_contexts_layer),
                      .expert = absl::GetFlag(FLAGS_contexts_expert)};
  if (options.contexts_file.empty() && options.contexts != moe::TopContexts::Options()) {
    moe::ExitWithUsageError(
        "--contexts_per_expert, --contexts_layer and --contexts_expert say what goes "
        "into "
        "--contexts_file, which is missing");
  }
  if (options.contexts.per_expert < 1) {
    moe::ExitWithUsageError(absl::StrCat("--contexts_per_expert is ",
                                         options.contexts.per_expert,
                                         "; it must be at least 1"));
  }

  absl::StatusOr<std::shared_ptr<const moe::TlsCredentials>> tls =
      moe::TlsFromFlags({moe::Role::kWorker});
  if (!tls.ok()) {
    std::fprintf(stderr, "worker %s: %s\n", options.name.c_str(),
                 std::string(tls.status().message()).c_str());
    return 1;
  }
  options.tls = *std::move(tls);

  std::atomic<moe::Worker*> started = nullptr;
  moe::ServiceNotifier notifier([&] {
    moe::Worker* const worker = started;
    return worker == nullptr ? std::string("begins") : worker->Describe();
  });
  options.on_joined = [&] { notifier.Ready(); };
  moe::Worker worker(options);
  started = &worker;
  const absl::Cleanup stop_notifier = [&] { notifier.Stop(); };
  absl::Notification told_to_stop;
  moe::TerminationHandler on_signal([&](int) {
    notifier.Stopping();
    told_to_stop.Notify();
    worker.Stop();
  });
  const absl::Status status = worker.Wait();
  if (status.ok() && absl::GetFlag(FLAGS_linger)) told_to_stop.WaitForNotification();
  notifier.Stopping();
  if (status.ok()) return 0;
  std::fprintf(stderr, "worker %s: %s\n", options.name.c_str(),
               std::string(status.message()).c_str());
  return told_to_stop.HasBeenNotified() && absl::IsCancelled(status) ? 0 : 1;
}
