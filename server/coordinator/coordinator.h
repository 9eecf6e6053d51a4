// The coordinator as an object: the services over a JobController, and the threads that
// they need.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/net/rpc_server.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "server/coordinator/coordinator_service.h"
#include "server/coordinator/job_controller.h"
#include "server/coordinator/line_printer.h"
#include "server/coordinator/store.h"

namespace moe {

class Coordinator {
 public:
  struct Options {
    v1::Job job;
    // As RpcServer::Start; the health of services is this object's.
    std::string listen = "127.0.0.1:0";
    RpcServer::Options rpc;
    // Folder of the FileStore; empty: state is kept in memory.
    std::string state_dir;
    // Instead of that; outlives the coordinator.
    Store* store = nullptr;
    // Whether this coordinator may act at present. While it may not, it answers UNAVAILABLE, and for
    // members that time doesn't count. Any thread; null: always.
    std::function<bool()> leads;
    // Folder that all members share. Training only.
    std::string checkpoint_dir;
    int servers = 1;
    int workers = 1;
    // As in RunOptions.
    int copies = 1;
    // Go on from the last checkpoint in checkpoint_dir, or from restore_from if that is
    // set.
    bool resume = false;
    // As resume, but from the beginning where there is no checkpoint.
    bool resume_if_any = false;
    v1::RunMode mode = v1::RUN_MODE_TRAIN;
    v1::Split evaluate_split = v1::SPLIT_TEST;
    // A checkpoint's folder, or a folder of checkpoints, of which the last is taken. What
    // an evaluation evaluates and what training goes on from.
    std::string restore_from;
    absl::Duration heartbeat = absl::Milliseconds(500);
    absl::Duration lease = absl::Seconds(5);
    // Of the first worker to report an evaluation or to await a checkpoint, for the
    // others.
    absl::Duration report_timeout = absl::Minutes(10);
    // As in RunOptions.
    int recoveries = 5;
    absl::Duration rejoin_timeout = absl::Seconds(30);
    bool grow = false;
    // Lines for people; may be null.
    std::ostream* progress = nullptr;
  };

  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(Options options);
  // Ends at once, whatever the job does.
  ~Coordinator();

  const std::string& address() const { return server_->address(); }
  // In a line, for people: how far the job is, or whom it waits for.
  std::string Describe();
  // Returns when the job is over and the members know, or a lease later. OK if it
  // finished, else ABORTED with the cause.
  absl::Status WaitUntilOver();
  // The same, and then answers no more calls.
  absl::Status Wait();
  // Whether the job is not over.
  bool IsUnderWay();
  // Fails the job unless it is over; safe from any thread.
  void Stop();
  RunSummary summary() { return controller_->summary(); }

 private:
  explicit Coordinator(Options options);
  void Tick();

  const Options options_;
  LinePrinter printer_;
  std::unique_ptr<Store> own_store_;
  Store* store_ = nullptr;
  std::unique_ptr<JobController> controller_;
  std::unique_ptr<CoordinatorServiceImpl> coordinator_service_;
  std::unique_ptr<ClusterStatusServiceImpl> status_service_;
  std::unique_ptr<OperatorServiceImpl> operator_service_;
  std::unique_ptr<RpcServer> server_;
  absl::Mutex mutex_;
  bool stop_ticking_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread ticker_;
};

}  // namespace moe
