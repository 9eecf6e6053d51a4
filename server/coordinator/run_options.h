// What a coordinator runs, and with how many members.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "server/coordinator/adoption.h"
#include "server/coordinator/restore.h"

namespace moe {

struct RunOptions {
  v1::Job job;
  int servers = 1;
  int workers = 1;
  // Of each shard, on different servers: 1 or 2. With two the loss of a server doesn't end the generation
  // as long as the others have its shards.
  int copies = 1;
  v1::RunMode mode = v1::RUN_MODE_TRAIN;
  v1::Split evaluate_split = v1::SPLIT_TEST;
  std::optional<RestorePoint> restore;
  // The coordinator that had this state before ended while the job was under way: lost members have
  // rejoin_timeout, and there are to be as many as there were.
  bool interrupted = false;
  // Then the generation that ran may go on; `restore` is where the job began, if it has no checkpoint.
  std::optional<Adoption> adoption;
  std::string checkpoint_dir;
  absl::Duration heartbeat = absl::Milliseconds(500);
  absl::Duration lease = absl::Seconds(5);
  // How long the first worker to report an evaluation or to await a checkpoint waits
  // for the rest, and how long a job may run without any report.
  absl::Duration report_timeout = absl::Minutes(10);
  // New generations in a row that get no step further than those before, until the job fails; 0: the
  // first loss fails it.
  int recoveries = 5;
  // How long a new generation waits for lost members, until it goes on with those that are there.
  absl::Duration rejoin_timeout = absl::Seconds(30);
  // Members beyond those that the job takes are taken in, as after a wish for so many.
  bool grow = false;
  // The clock; null is absl::Now. Called under the controller's lock.
  std::function<absl::Time()> now;
  // Gets lines for people; null is nobody. Called under the controller's lock.
  std::function<void(const std::string&)> print;
};

// Fills in what follows from the rest (the vocabulary of a checkpoint, the functions), or
// says which options don't go together.
absl::Status CompleteRunOptions(RunOptions& options);

}  // namespace moe
