#include "server/coordinator/file_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/io/sha256.h"

namespace moe {
namespace {

constexpr char kMagic[] = "switchyard-state 1 ";

std::string Serialize(const std::map<std::string, Store::Entry>& entries) {
  std::string body;
  for (const auto& [key, entry] : entries) {
    absl::StrAppend(&body, entry.version, "\t", absl::CEscape(key), "\t",
                    absl::CEscape(entry.value), "\n");
  }
  return absl::StrCat(kMagic, Sha256Hex(body), "\n", body);
}

absl::StatusOr<std::map<std::string, Store::Entry>> Parse(const std::string& contents) {
  const absl::Status damaged =
      absl::DataLossError("is damaged, or no coordinator's state");
  absl::string_view rest = contents;
  const size_t header_end = rest.find('\n');
  if (!absl::ConsumePrefix(&rest, kMagic) || header_end == absl::string_view::npos)
    return damaged;
  const std::string sha256(rest.substr(0, rest.find('\n')));
  const std::string body = contents.substr(header_end + 1);
  if (Sha256Hex(body) != sha256) return damaged;

  std::map<std::string, Store::Entry> entries;
  for (absl::string_view line : absl::StrSplit(body, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, '\t');
    std::string key;
    Store::Entry entry;
    if (fields.size() != 3 || !absl::SimpleAtoi(fields[0], &entry.version) ||
        !absl::CUnescape(fields[1], &key) || !absl::CUnescape(fields[2], &entry.value)) {
      return damaged;
    }
    entries[key] = std::move(entry);
  }
  return entries;
}

// Held until the descriptor closes, hence also released when the process is killed.
absl::StatusOr<int> LockFolder(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0)
    return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    char holder[32] = {};
    const ssize_t length = pread(fd, holder, sizeof(holder) - 1, 0);
    close(fd);
    if (error != EWOULDBLOCK) {
      return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(error)));
    }
    return absl::FailedPreconditionError(
        absl::StrCat(folder, " belongs to another coordinator, which is running",
                     length > 0 ? absl::StrCat(" (pid ", holder, ")") : "",
                     "; give this one another --state_dir"));
  }
  const std::string pid = absl::StrCat(getpid());
  // For the message above only.
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    const int error = errno;
    close(fd);
    return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(error)));
  }
  return fd;
}

}  // namespace

absl::StatusOr<std::optional<Store::Entry>> MemoryStore::Get(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return std::optional<Entry>();
  return std::optional<Entry>(found->second);
}

absl::StatusOr<uint64_t> MemoryStore::CompareAndSwap(const std::string& key,
                                                     uint64_t version,
                                                     const std::string& value) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(key);
  const uint64_t present = found == entries_.end() ? 0 : found->second.version;
  if (present != version) {
    return absl::AbortedError(
        absl::StrCat("state key ", key, " has version ", present, ", not ", version));
  }
  Entries changed = entries_;
  changed[key] = {value, version + 1};
  RETURN_IF_ERROR(Persist(changed));
  entries_ = std::move(changed);
  return version + 1;
}

absl::StatusOr<std::map<std::string, Store::Entry>> MemoryStore::List(
    const std::string& prefix) {
  absl::MutexLock lock(&mutex_);
  std::map<std::string, Entry> found;
  for (auto entry = entries_.lower_bound(prefix);
       entry != entries_.end() && absl::StartsWith(entry->first, prefix); ++entry) {
    found.insert(*entry);
  }
  return found;
}

absl::StatusOr<std::unique_ptr<FileStore>> FileStore::Open(const std::string& folder) {
  RETURN_IF_ERROR(MakeDirs(folder));
  ASSIGN_OR_RETURN(const int lock_fd, LockFolder(folder));
  const std::string path = absl::StrCat(folder, "/state");
  absl::StatusOr<Entries> entries = Entries();
  if (const absl::Status tidied = RemoveUnfinished(path); !tidied.ok()) {
    entries = tidied;
  } else if (absl::StatusOr<std::string> contents = ReadFile(path); contents.ok()) {
    entries = Parse(*contents);
  } else if (!absl::IsNotFound(contents.status())) {
    entries = contents.status();
  }
  if (!entries.ok()) {
    close(lock_fd);
    return Annotate(entries.status(), path);
  }
  return std::unique_ptr<FileStore>(new FileStore(path, lock_fd, *std::move(entries)));
}

FileStore::~FileStore() { close(lock_fd_); }

absl::Status FileStore::Persist(const Entries& entries) {
  return WriteFileAtomically(path_, Serialize(entries));
}

}  // namespace moe
