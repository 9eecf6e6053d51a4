// A cluster of this command's own on 127.0.0.1: a coordinator, an expert server and a worker that
// evaluate a checkpoint and end. A running job isn't touched.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/moectl/flag_set.h"
#include "client/moectl/json.h"

namespace moe {

struct PrivateClusterOptions {
  // A checkpoint's folder, or a folder of checkpoints, of which the last is taken.
  std::string checkpoint;
  // Prepared text.
  std::string data;
  // test | validation
  std::string split = "test";
  // Of the server and of the worker. 0: one a processor.
  int threads = 0;
  // Where the programs are.
  std::string bin_dir;
};

// With bin_dir where this program lies.
PrivateClusterOptions DefaultPrivateCluster();
// The flags that set them.
void AddPrivateClusterFlags(PrivateClusterOptions* options, bool required,
                            FlagSet& flags);

// A folder that is removed with the object.
class TemporaryFolder {
 public:
  static absl::StatusOr<TemporaryFolder> Make();
  ~TemporaryFolder();
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::move(other.path_)) {
    other.path_.clear();
  }
  TemporaryFolder& operator=(TemporaryFolder&&) = delete;
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// What the coordinator wrote at the end of an evaluation that finished. worker_flags are added to
// the worker's. Logs go to `folder`. Blocks; SIGINT and SIGTERM stop the cluster, and the result is
// CANCELLED.
absl::StatusOr<Json> EvaluateInPrivateCluster(
    const PrivateClusterOptions& options, const std::vector<std::string>& worker_flags,
    const std::string& folder);

}  // namespace moe
