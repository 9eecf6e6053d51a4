// Files of tensors: refused as damaged, or with entries that lie in the file.
#include <glog/logging.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/io/safetensors.h"
#include "tests/fuzz/target.h"

namespace moe::fuzz {
namespace {

std::string FileOf(const std::string& header, size_t data) {
  std::string file;
  Put(uint64_t{header.size()}, &file);
  return file + header + std::string(data, 'x');
}

// A file in memory, for as long as the object lives.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes) : fd_(memfd_create("input", MFD_CLOEXEC)) {
    CHECK_GE(fd_, 0);
    CHECK_EQ(write(fd_, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  ~MemoryFile() { close(fd_); }
  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  const int fd_;
};

// Reads every byte of it.
void Check(const SafetensorsFile& file, size_t size) {
  size_t expected = 0;
  for (const SafetensorsEntry& entry : file.entries()) {
    CHECK_EQ(file.Find(entry.name)->bytes, entry.bytes);
    expected += entry.bytes;
  }
  size_t total = 0;
  const absl::Status read = file.ReadAll(
      [&](const SafetensorsEntry& entry, size_t begin, std::string_view bytes) {
        CHECK_LE(begin + bytes.size(), entry.bytes);
        total += bytes.size();
      });
  CHECK(read.ok()) << read;
  CHECK_EQ(total, expected);
  CHECK_LE(total, size);
}

}  // namespace

std::map<std::string, std::string> Seeds() {
  return {
      {"empty", ""},
      {"no_entry", FileOf("{}", 0)},
      {"two", FileOf(R"({"__metadata__":{"step":"3"},)"
                     R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                     R"("b":{"dtype":"U8","shape":[5],"data_offsets":[24,29]}})",
                     29)},
      {"scalar", FileOf(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", 8)},
      {"none_of_it",
       FileOf(R"({"n":{"dtype":"BF16","shape":[0,7],"data_offsets":[0,0]}})", 0)},
      {"short", FileOf(R"({"s":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}})", 8)},
      {"too_large", FileOf(R"({"s":{"dtype":"F64","shape":[4294967296,4294967296],)"
                           R"("data_offsets":[0,0]}})",
                           0)},
      {"nested", FileOf(std::string(40, '['), 0)},
      {"twice", FileOf(R"({"s":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("s":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                       1)}};
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moe;
  const fuzz::MemoryFile input({reinterpret_cast<const char*>(data), size});
  const absl::StatusOr<std::unique_ptr<SafetensorsFile>> file =
      SafetensorsFile::Open(input.path());
  if (!file.ok()) {
    CHECK(absl::IsDataLoss(file.status())) << file.status();
    return 0;
  }
  fuzz::Check(**file, size);
  return 0;
}
