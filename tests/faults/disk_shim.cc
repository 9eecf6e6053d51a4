// Preloaded into a program (LD_PRELOAD), makes its disk fail on purpose, or writes down what it
// does to it. Only calls that concern paths below DISK_SHIM_FOLDERS count, and of these only those
// that change what is on the disk or make it last, and reads.
//
//   DISK_SHIM_FOLDERS=PATH:PATH..  absolute
//   DISK_SHIM_KILL=N               SIGKILL before the N-th change, N from 1; of a write, half is done
//                                  with DISK_SHIM_TORN=1
//   DISK_SHIM_FAIL=CALL:ERRNO[:PART]  each CALL (open, write, fsync, rename, read, mkdir, unlink)
//                                  whose path contains PART (PART$: ends with it) fails with that
//                                  error's number
//   DISK_SHIM_FAIL_IF=PATH         .. only while there is a file PATH
//   DISK_SHIM_FLIP=PART            a bit of what is read of files whose path contains PART is flipped
//   DISK_SHIM_LOG=FILE             one JSON object a line for each change, in the order in which
//                                  they took effect, also those of several processes; bytes in hex
//
// Paths of descriptors are as the kernel has them, so a folder may be renamed meanwhile.
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

namespace {

std::string Setting(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ':') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

class Shim {
 public:
  static Shim& Get() {
    // Never destroyed: other destructors still touch files.
    static Shim* const shim = new Shim;
    return *shim;
  }

  bool Watches(const std::string& path) const {
    return std::any_of(folders_.begin(), folders_.end(), [&](const std::string& folder) {
      return path == folder || path.compare(0, folder.size() + 1, folder + "/") == 0;
    });
  }

  // 0, or the error with which the call is to fail.
  int Failure(const std::string& call, const std::string& path) const {
    if (fail_.size() < 2 || fail_[0] != call) return 0;
    if (fail_.size() > 2 && !Has(path, fail_[2])) return 0;
    if (!fail_if_.empty() && access(fail_if_.c_str(), F_OK) != 0) return 0;
    return std::stoi(fail_[1]);
  }

  bool Flips(const std::string& path) const { return !flip_.empty() && Has(path, flip_); }

  // Runs a change, `call` of `path`, with all others of all processes held back. torn: what is done
  // of it by a process that dies in its midst. describe: the rest of its line in the log, after it
  // has succeeded.
  template <typename Call, typename Torn, typename Describe>
  auto Change(const std::string& call, const std::string& path, const Call& run,
              const Torn& torn, const Describe& describe) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (log_ >= 0) flock(log_, LOCK_EX);
    if (++changes_ == kill_) {
      if (torn_) torn();
      syscall(SYS_kill, getpid(), SIGKILL);
      pause();
    }
    decltype(run()) result = -1;
    if (const int error = Failure(call, path); error != 0) {
      errno = error;
    } else {
      result = run();
    }
    const int error = errno;
    if (log_ >= 0) {
      if (result >= 0) Log(call, path, describe());
      flock(log_, LOCK_UN);
    }
    errno = error;
    return result;
  }

 private:
  Shim() {
    folders_ = Split(Setting("DISK_SHIM_FOLDERS"));
    kill_ = atol(Setting("DISK_SHIM_KILL").c_str());
    torn_ = !Setting("DISK_SHIM_TORN").empty();
    fail_ = Split(Setting("DISK_SHIM_FAIL"));
    fail_if_ = Setting("DISK_SHIM_FAIL_IF");
    flip_ = Setting("DISK_SHIM_FLIP");
    if (const std::string log = Setting("DISK_SHIM_LOG"); !log.empty()) {
      log_ = static_cast<int>(syscall(SYS_openat, AT_FDCWD, log.c_str(),
                                      O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
    }
  }

  static bool Has(const std::string& path, const std::string& part) {
    if (part.empty() || part.back() != '$') return path.find(part) != path.npos;
    const size_t size = part.size() - 1;
    return path.size() >= size &&
           path.compare(path.size() - size, size, part, 0, size) == 0;
  }

  void Log(const std::string& call, const std::string& path,
           const std::string& more) const {
    // Paths of a test have nothing that JSON would escape.
    const std::string line = "{\"pid\": " + std::to_string(getpid()) + ", \"call\": \"" +
                             call + "\", \"path\": \"" + path + "\"" + more + "}\n";
    for (size_t done = 0; done < line.size();) {
      const long n = syscall(SYS_write, log_, line.data() + done, line.size() - done);
      if (n <= 0) abort();
      done += n;
    }
  }

  std::vector<std::string> folders_;
  long kill_ = 0;
  bool torn_ = false;
  std::vector<std::string> fail_;
  std::string fail_if_;
  std::string flip_;
  int log_ = -1;
  std::mutex mutex_;
  long changes_ = 0;
};

std::string PathOf(int fd) {
  char path[PATH_MAX];
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t size = readlink(link.c_str(), path, sizeof(path));
  return size < 0 ? "" : std::string(path, size);
}

std::string PathOf(int folder, const char* path) {
  if (path[0] == '/') return path;
  if (folder != AT_FDCWD) return PathOf(folder) + "/" + path;
  char here[PATH_MAX];
  return getcwd(here, sizeof(here)) == nullptr ? path : std::string(here) + "/" + path;
}

std::string Hex(const void* data, size_t size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (size_t i = 0; i < size; ++i) {
    const unsigned char byte = static_cast<const unsigned char*>(data)[i];
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

constexpr auto kNothing = [] {};
constexpr auto kNoMore = [] { return std::string(); };

std::string To(const std::string& to) { return ", \"to\": \"" + to + "\""; }

int Open(int folder, const char* name, int flags, mode_t mode) {
  const auto open = [&] {
    return static_cast<int>(syscall(SYS_openat, folder, name, flags, mode));
  };
  const std::string path = PathOf(folder, name);
  Shim& shim = Shim::Get();
  if (!shim.Watches(path)) return open();
  if ((flags & (O_CREAT | O_TRUNC)) != 0 && (flags & O_TMPFILE) != O_TMPFILE) {
    return shim.Change("open", path, open, kNothing, [&] {
      return std::string((flags & O_TRUNC) != 0 ? ", \"truncate\": true" : "");
    });
  }
  if (const int error = shim.Failure("open", path); error != 0) {
    errno = error;
    return -1;
  }
  return open();
}

template <typename Run>
ssize_t Read(int fd, void* data, const Run& run) {
  const std::string path = PathOf(fd);
  Shim& shim = Shim::Get();
  if (!shim.Watches(path)) return run();
  if (const int error = shim.Failure("read", path); error != 0) {
    errno = error;
    return -1;
  }
  const ssize_t got = run();
  if (got > 0 && shim.Flips(path)) static_cast<char*>(data)[got / 2] ^= 1;
  return got;
}

ssize_t WriteAt(int fd, const void* data, size_t size, off64_t offset) {
  const auto put = [&](size_t bytes) -> ssize_t {
    return offset < 0 ? syscall(SYS_write, fd, data, bytes)
                      : syscall(SYS_pwrite64, fd, data, bytes, offset);
  };
  // Most writes are to sockets and pipes.
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return put(size);
  const std::string path = PathOf(fd);
  if (!Shim::Get().Watches(path)) return put(size);
  ssize_t written = 0;
  return Shim::Get().Change(
      "write", path, [&] { return written = put(size); }, [&] { put(size / 2); },
      [&] {
        const off64_t at = offset >= 0 ? offset : lseek(fd, 0, SEEK_CUR) - written;
        return ", \"at\": " + std::to_string(at) + ", \"bytes\": \"" +
               Hex(data, written) + "\"";
      });
}

int Sync(int fd, long number) {
  const auto sync = [&] { return static_cast<int>(syscall(number, fd)); };
  const std::string path = PathOf(fd);
  if (!Shim::Get().Watches(path)) return sync();
  return Shim::Get().Change("fsync", path, sync, kNothing, kNoMore);
}

int Rename(int from_folder, const char* from, int to_folder, const char* to,
           unsigned flags) {
  const auto rename = [&] {
    return static_cast<int>(
        syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
  };
  const std::string path = PathOf(from_folder, from);
  const std::string target = PathOf(to_folder, to);
  if (!Shim::Get().Watches(path) && !Shim::Get().Watches(target)) return rename();
  return Shim::Get().Change("rename", path, rename, kNothing, [&] { return To(target); });
}

int Unlink(int folder, const char* name, int flags) {
  const auto unlink = [&] {
    return static_cast<int>(syscall(SYS_unlinkat, folder, name, flags));
  };
  const std::string path = PathOf(folder, name);
  if (!Shim::Get().Watches(path)) return unlink();
  return Shim::Get().Change("unlink", path, unlink, kNothing, kNoMore);
}

int MakeFolder(int folder, const char* name, mode_t mode) {
  const auto make = [&] {
    return static_cast<int>(syscall(SYS_mkdirat, folder, name, mode));
  };
  const std::string path = PathOf(folder, name);
  if (!Shim::Get().Watches(path)) return make();
  return Shim::Get().Change("mkdir", path, make, kNothing, kNoMore);
}

int Truncate(int fd, off64_t size) {
  const auto truncate = [&] {
    return static_cast<int>(syscall(SYS_ftruncate, fd, size));
  };
  const std::string path = PathOf(fd);
  if (!Shim::Get().Watches(path)) return truncate();
  return Shim::Get().Change("truncate", path, truncate, kNothing,
                            [&] { return ", \"size\": " + std::to_string(size); });
}

}  // namespace

extern "C" {

#define MODE_OF(flags)                                              \
  mode_t mode = 0;                                                  \
  if (((flags)&O_CREAT) != 0 || ((flags)&O_TMPFILE) == O_TMPFILE) { \
    va_list list;                                                   \
    va_start(list, flags);                                          \
    mode = va_arg(list, mode_t);                                    \
    va_end(list);                                                   \
  }

int open(const char* path, int flags, ...) {
  MODE_OF(flags);
  return Open(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  MODE_OF(flags);
  return Open(AT_FDCWD, path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
  MODE_OF(flags);
  return Open(folder, path, flags, mode);
}
int openat64(int folder, const char* path, int flags, ...) {
  MODE_OF(flags);
  return Open(folder, path, flags, mode);
}
int creat(const char* path, mode_t mode) {
  return Open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

ssize_t read(int fd, void* data, size_t size) {
  return Read(fd, data, [&] { return syscall(SYS_read, fd, data, size); });
}
ssize_t pread(int fd, void* data, size_t size, off_t offset) {
  return Read(fd, data, [&] { return syscall(SYS_pread64, fd, data, size, offset); });
}
ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  return Read(fd, data, [&] { return syscall(SYS_pread64, fd, data, size, offset); });
}

ssize_t write(int fd, const void* data, size_t size) {
  return WriteAt(fd, data, size, -1);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  return WriteAt(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  return WriteAt(fd, data, size, offset);
}

int fsync(int fd) { return Sync(fd, SYS_fsync); }
int fdatasync(int fd) { return Sync(fd, SYS_fdatasync); }
int ftruncate(int fd, off_t size) noexcept { return Truncate(fd, size); }
int ftruncate64(int fd, off64_t size) noexcept { return Truncate(fd, size); }

int rename(const char* from, const char* to) noexcept {
  return Rename(AT_FDCWD, from, AT_FDCWD, to, 0);
}
int renameat(int from_folder, const char* from, int to_folder, const char* to) noexcept {
  return Rename(from_folder, from, to_folder, to, 0);
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to,
              unsigned flags) noexcept {
  return Rename(from_folder, from, to_folder, to, flags);
}

int unlink(const char* path) noexcept { return Unlink(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char* path, int flags) noexcept {
  return Unlink(folder, path, flags);
}
int rmdir(const char* path) noexcept { return Unlink(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char* path) noexcept {
  struct stat info;
  const bool folder = lstat(path, &info) == 0 && S_ISDIR(info.st_mode);
  return Unlink(AT_FDCWD, path, folder ? AT_REMOVEDIR : 0);
}

int mkdir(const char* path, mode_t mode) noexcept {
  return MakeFolder(AT_FDCWD, path, mode);
}
int mkdirat(int folder, const char* path, mode_t mode) noexcept {
  return MakeFolder(folder, path, mode);
}

}  // extern "C"
