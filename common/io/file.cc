#include "common/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>
#include <system_error>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/string_view.h"
#include "common/io/input_file.h"

namespace moe {
namespace {

absl::Status SystemError(int error, std::string_view action, const std::string& path) {
  return absl::ErrnoToStatus(error, absl::StrCat("cannot ", ToAbsl(action), " ", path));
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return SystemError(errno, "write", path);
    }
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

class DescriptorSink : public FileSink {
 public:
  // path is for errors.
  DescriptorSink(int fd, const std::string& path) : fd_(fd), path_(path) {}
  absl::Status Append(std::string_view bytes) override {
    return WriteAll(fd_, bytes, path_);
  }

 private:
  const int fd_;
  const std::string& path_;
};

absl::Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(errno, "open folder", folder);
  const int error = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  // Some network and overlay file systems can't sync a folder.
  if (error == 0 || error == EINVAL) return absl::OkStatus();
  return SystemError(error, "sync folder", folder);
}

std::string FolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

constexpr char kTemporary[] = ".tmp-";

// Several threads and processes may write the same path, also on machines that share the folder.
std::string TemporaryName(const std::string& path) {
  static std::atomic<uint64_t> counter = 0;
  static const uint32_t process = std::random_device()();
  return absl::StrCat(path, kTemporary, getpid(), "-", absl::Hex(process), "-",
                      counter++);
}

// Those files in the folder whose names are chosen. OK if one goes meanwhile.
absl::Status RemoveFiles(const std::string& folder,
                         const std::function<bool(const std::string& name)>& chosen) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end;
       !error && entry != end; entry.increment(error)) {
    if (!chosen(entry->path().filename().string())) continue;
    if (unlink(entry->path().c_str()) != 0 && errno != ENOENT) {
      return SystemError(errno, "remove", entry->path().string());
    }
  }
  if (error) return SystemError(error.value(), "list", folder);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(path));
  ASSIGN_OR_RETURN(const struct stat info, file.Stat());
  std::string contents;
  size_t size = 0;
  // One byte more than the file has, to see its end; pipes and /proc give no size.
  contents.resize(static_cast<size_t>(info.st_size) + 1);
  while (true) {
    ASSIGN_OR_RETURN(const size_t got,
                     file.Read(contents.data() + size, contents.size() - size));
    if (got == 0) break;
    size += got;
    if (size == contents.size()) contents.resize(2 * size + 4096);
  }
  contents.resize(size);
  return contents;
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view contents) {
  return WriteFileAtomically(path, [&](FileSink& sink) { return sink.Append(contents); });
}

absl::Status WriteFileAtomically(const std::string& path,
                                 const std::function<absl::Status(FileSink&)>& write) {
  // A rename would put a file in the place of a device or a pipe.
  struct stat there;
  if (lstat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode) &&
      !S_ISLNK(there.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write ", path, ": it is there and isn't a regular file"));
  }
  const std::string temporary = TemporaryName(path);
  int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return SystemError(errno, "create", path);
  absl::Cleanup remover = [&] {
    if (fd >= 0) close(fd);
    unlink(temporary.c_str());
  };

  DescriptorSink sink(fd, path);
  RETURN_IF_ERROR(write(sink));
  if (fsync(fd) != 0) return SystemError(errno, "write", path);
  const int closed = close(fd);
  fd = -1;
  if (closed != 0) return SystemError(errno, "write", path);
  if (rename(temporary.c_str(), path.c_str()) != 0)
    return SystemError(errno, "write", path);
  std::move(remover).Cancel();

  return SyncFolder(FolderOf(path));
}

absl::Status RemoveUnfinished(const std::string& path) {
  const std::string prefix = std::filesystem::path(path).filename().string() + kTemporary;
  return RemoveFiles(FolderOf(path), [&](const std::string& name) {
    return name.compare(0, prefix.size(), prefix) == 0;
  });
}

absl::Status RemoveAllUnfinished(const std::string& folder) {
  return RemoveFiles(
      folder, [](const std::string& name) { return name.find(kTemporary) != name.npos; });
}

absl::Status MakeDirs(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<fs::path> missing;
  std::error_code error;
  for (fs::path folder = path; !folder.empty() && !fs::exists(folder, error);
       folder = folder.parent_path()) {
    missing.push_back(folder);
  }
  fs::create_directories(path, error);
  if (error) return SystemError(error.value(), "create folder", path);
  // A file in a folder is only as safe as the folder's own name.
  for (const fs::path& folder : missing) {
    RETURN_IF_ERROR(SyncFolder(FolderOf(folder.string())));
  }
  return absl::OkStatus();
}

absl::Status RenameFolder(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) {
    return SystemError(errno, "rename to " + to, from);
  }
  return SyncFolder(FolderOf(to));
}

absl::Status RemoveFile(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return SystemError(errno, "remove", path);
  }
  return SyncFolder(FolderOf(path));
}

absl::Status RemoveTree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) return SystemError(error.value(), "remove", path);
  return absl::OkStatus();
}

}  // namespace moe
