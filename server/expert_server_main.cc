// The daemon `expert_server`: flags, signals, and an ExpertServer.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/allocator.h"
#include "common/base/program.h"
#include "common/base/protocol.h"
#include "common/base/service_notifier.h"
#include "common/base/signals.h"
#include "common/io/file.h"
#include "common/kernels/device.h"
#include "common/net/rpc_server_flags.h"
#include "server/expert_server.h"
#include "server/linger.h"

ABSL_FLAG(std::string, name, "",
          "Name of this server, unique among the servers of the cluster. Required.");
ABSL_FLAG(
    std::string, listen, "127.0.0.1:0",
    "Address to listen on: host:port, where port 0 takes any free one, or unix:path. "
    "What other machines can reach needs TLS, or --insecure.");
ABSL_FLAG(
    std::string, advertise, "",
    "Address at which workers reach this server, if it isn't the one it listens on, as "
    "for 0.0.0.0 or behind a NAT. Empty: --listen with the real port.");
ABSL_FLAG(
    std::string, coordinator, "",
    "Address of the coordinator: host:port or unix:path; or of several of which one "
    "leads: a:7070,b:7070. Required.");
ABSL_FLAG(int, threads, 0,
          "Threads that compute. 0: as many as the machine has. Never changes a result.");
ABSL_FLAG(std::string, device, "cpu", std::string(moe::kDeviceHelp));
ABSL_FLAG(
    bool, tf32, false,
    "On a GPU: products on its tensor cores, which take only 10 bits of the factors' "
    "significands. Another numerics class.");
ABSL_FLAG(
    double, expert_cache_gib, 0,
    "Of a GPU's memory, what experts may take that lie on the host (--disk_dir), in GiB; "
    "the rest of them streams by. 0: half of what is free when the server starts.");
ABSL_FLAG(
    double, memory_gib, 0,
    "Memory that it may use, in GiB; a job that is computed to need more is refused. "
    "0: what the machine has available, shared with the other members there.");
ABSL_FLAG(
    std::string, disk_dir, "",
    "Folder for a file with the parameters and optimizer state of experts, for models "
    "larger than memory: an expert takes disk from the first step that needs it on. "
    "The file has no name and ends with the process; checkpoints are elsewhere. "
    "Empty: experts are kept in memory.");
ABSL_FLAG(double, disk_gib, 0,
          "What that file may take of the disk, in GiB; a step that needs more fails the "
          "job before it changes anything. Required with --disk_dir.");
ABSL_FLAG(
    double, activation_gib, 0,
    "Memory for hidden activations of experts, in GiB. Those for which there is no room "
    "are "
    "computed again when they are needed, which changes no result. 0: all are kept.");
ABSL_FLAG(
    double, copy_gib, 0,
    "Memory for copies while a checkpoint is being written, in GiB: before a step "
    "changes "
    "what isn't written yet, that is copied. A step for whose copies there is no room "
    "waits for the disk. 0: a quarter of what the server keeps of its shards in memory, "
    "but at least 64 MiB.");
ABSL_FLAG(absl::Duration, join_timeout, absl::Seconds(60),
          "How long to wait for a coordinator that isn't there yet.");
ABSL_FLAG(
    absl::Duration, coordinator_timeout, absl::Minutes(2),
    "How long to go on without the coordinator, which may be started again meanwhile.");
ABSL_FLAG(
    absl::Duration, rendezvous_timeout, absl::Seconds(60),
    "How long the first replica's part of a forward, backward or close may wait for the "
    "last one's. Then the job goes on from its last checkpoint, and says who was "
    "missing.");
ABSL_FLAG(bool, linger, false,
          "Once the job is finished don't end until SIGINT or SIGTERM: for a supervisor "
          "that starts again what ends well, too.");
ABSL_FLAG(
    absl::Duration, reconnect_timeout, moe::kReconnectTimeout,
    "How long a worker whose stream broke has to take it up again. Then the job goes on "
    "from its last checkpoint. 0: at once.");
ABSL_FLAG(std::string, trace_dir, "",
          "Folder for a trace of every contribution that workers send and of its use, "
          "some kilobytes "
          "a step, which `moectl trace` checks. Empty: none.");
ABSL_FLAG(
    std::string, port_file, "",
    "Write the address listened on, with the real port, to this file once it is known.");

namespace {

constexpr char kUsage[] =
    "Hosts shards of a model (experts, dense parameters, replica states) and computes on "
    "them.\n"
    "\n"
    "  expert_server --name NAME --coordinator HOST:PORT [flags]\n"
    "\n"
    "It joins the coordinator, is handed its shards, and serves workers until the job is "
    "over.\n"
    "Exit status: 0 when the job finished or on SIGINT or SIGTERM, 1 when the job failed "
    "(its\n"
    "cause is the last line on stderr), 2 for a mistake on the command line.\n"
    "\n"
    "Examples:\n"
    "  expert_server --name s0 --coordinator 127.0.0.1:7070\n"
    "  expert_server --name s1 --coordinator head:7070 --listen 0.0.0.0:7100 "
    "--advertise node1:7100\n"
    "      --tls_ca ca.crt --tls_cert server.crt --tls_key server.key\n"
    "  expert_server --flagfile server.flags";

// 0 if the job finished or somebody asked to stop.
int ExitStatus(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "expert_server: %s\n", std::string(status.message()).c_str());
  return absl::IsCancelled(status) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  moe::BlockTerminationSignals();
  if (!moe::ParseCommandLine(argc, argv, kUsage).empty()) {
    moe::ExitWithUsageError("takes flags only");
  }
  moe::ExpertServer::Options options;
  options.name = absl::GetFlag(FLAGS_name);
  options.listen = absl::GetFlag(FLAGS_listen);
  absl::StatusOr<moe::RpcServer::Options> rpc =
      moe::RpcServerOptionsFromFlags({moe::Role::kServer});
  if (!rpc.ok()) return ExitStatus(rpc.status());
  options.rpc = *std::move(rpc);
  options.advertise = absl::GetFlag(FLAGS_advertise);
  options.coordinator = absl::GetFlag(FLAGS_coordinator);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.device = {.device = absl::GetFlag(FLAGS_device),
                    .tf32 = absl::GetFlag(FLAGS_tf32),
                    .expert_cache_bytes = static_cast<int64_t>(moe::BytesOfGib(
                        "expert_cache_gib", absl::GetFlag(FLAGS_expert_cache_gib)))};
  options.memory = moe::BytesOfGib("memory_gib", absl::GetFlag(FLAGS_memory_gib));
  const std::string disk_dir = absl::GetFlag(FLAGS_disk_dir);
  const uint64_t disk = moe::BytesOfGib("disk_gib", absl::GetFlag(FLAGS_disk_gib));
  if (!disk_dir.empty() && disk == 0) {
    moe::ExitWithUsageError("--disk_dir needs --disk_gib, what it may take of the disk");
  }
  if (disk_dir.empty() && disk > 0) {
    moe::ExitWithUsageError("--disk_gib needs --disk_dir, the folder to take it in");
  }
  if (disk > 0) {
    options.limits.tier = {.folder = disk_dir, .disk_bytes = static_cast<int64_t>(disk)};
  }
  options.limits.activation_bytes = static_cast<int64_t>(
      moe::BytesOfGib("activation_gib", absl::GetFlag(FLAGS_activation_gib)));
  options.limits.copy_bytes =
      static_cast<int64_t>(moe::BytesOfGib("copy_gib", absl::GetFlag(FLAGS_copy_gib)));
  options.join_timeout = absl::GetFlag(FLAGS_join_timeout);
  options.coordinator_timeout = absl::GetFlag(FLAGS_coordinator_timeout);
  options.rendezvous_timeout = absl::GetFlag(FLAGS_rendezvous_timeout);
  options.trace_dir = absl::GetFlag(FLAGS_trace_dir);
  options.reconnect_timeout = absl::GetFlag(FLAGS_reconnect_timeout);
  if (options.name.empty()) moe::ExitWithUsageError("--name is required");
  if (options.coordinator.empty()) moe::ExitWithUsageError("--coordinator is required");
  if (options.threads < 0) moe::ExitWithUsageError("--threads must not be negative");
  if (options.rendezvous_timeout <= absl::ZeroDuration()) {
    moe::ExitWithUsageError("--rendezvous_timeout must be positive");
  }
  if (options.reconnect_timeout < absl::ZeroDuration()) {
    moe::ExitWithUsageError("--reconnect_timeout must not be negative");
  }
  if (options.threads == 0) {
    options.threads = std::max(1u, std::thread::hardware_concurrency());
  }

  const moe::RpcServer::Options lingering = options.rpc;
  std::unique_ptr<moe::ExpertServer> server;
  std::atomic<moe::ExpertServer*> started = nullptr;
  absl::Notification told_to_stop;
  moe::ServiceNotifier notifier([&, coordinator = options.coordinator] {
    moe::ExpertServer* const server = started;
    return server == nullptr ? "joins the coordinator " + coordinator
                             : server->Describe();
  });
  const absl::Cleanup stop_notifier = [&] { notifier.Stop(); };
  const moe::TerminationHandler on_signal([&](int) {
    notifier.Stopping();
    told_to_stop.Notify();
    // Before it has joined, nobody counts on it.
    if (started == nullptr) {
      notifier.Stop();
      std::_Exit(0);
    }
    started.load()->Stop();
  });
  absl::StatusOr<std::unique_ptr<moe::ExpertServer>> joined =
      moe::ExpertServer::Start(std::move(options));
  if (!joined.ok()) return ExitStatus(joined.status());
  server = *std::move(joined);
  started = server.get();
  if (const std::string path = absl::GetFlag(FLAGS_port_file); !path.empty()) {
    const absl::Status status = moe::WriteFileAtomically(path, server->address() + "\n");
    if (!status.ok()) return ExitStatus(status);
  }
  notifier.Ready();
  absl::Status status = server->Wait();
  if (status.ok() && absl::GetFlag(FLAGS_linger)) {
    status = moe::LingerUntil(told_to_stop, server->address(), lingering);
  }
  notifier.Stopping();
  return ExitStatus(status);
}
