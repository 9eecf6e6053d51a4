// A Store in one file of a folder, and a Store in memory.
//
// The file is written anew and atomically at each change; it is small. A lock on the
// folder keeps a second coordinator out for as long as the first one lives, however that
// ends.
//
//   switchyard-state 1 <SHA-256 of all that follows>\n
//   <version>\t<key>\t<value>\n      keys and values C-escaped, ascending by key
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/coordinator/store.h"

namespace moe {

// Thread-safe. Forgets everything at its end.
class MemoryStore : public Store {
 public:
  MemoryStore() = default;
  absl::StatusOr<std::optional<Entry>> Get(const std::string& key) override;
  absl::StatusOr<uint64_t> CompareAndSwap(const std::string& key, uint64_t version,
                                          const std::string& value) override;
  absl::StatusOr<std::map<std::string, Entry>> List(const std::string& prefix) override;

 protected:
  using Entries = std::map<std::string, Entry>;

  explicit MemoryStore(Entries entries) : entries_(std::move(entries)) {}
  // Called with what the entries are about to become; an error keeps them as they are.
  virtual absl::Status Persist(const Entries&) { return absl::OkStatus(); }

 private:
  absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
};

class FileStore final : public MemoryStore {
 public:
  // Creates the folder if need be. FAILED_PRECONDITION if another coordinator uses it,
  // DATA_LOSS if the file is damaged.
  static absl::StatusOr<std::unique_ptr<FileStore>> Open(const std::string& folder);
  ~FileStore() override;

 private:
  FileStore(std::string path, int lock_fd, Entries entries)
      : MemoryStore(std::move(entries)), path_(std::move(path)), lock_fd_(lock_fd) {}
  absl::Status Persist(const Entries& entries) override;

  const std::string path_;
  const int lock_fd_;
};

}  // namespace moe
