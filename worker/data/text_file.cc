#include "worker/data/text_file.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/io/sha256.h"
#include "worker/data/tokenizer.h"

namespace moe {
namespace {

constexpr size_t kBlockBytes = size_t{1} << 20;

absl::Status Changed(const std::string& path) {
  return absl::AbortedError(
      absl::StrCat(path, " has changed while it was read; start again when it is whole"));
}

bool IsCompressed(std::string_view start) {
  return start.starts_with("\x1f\x8b") || start.starts_with("BZh") ||
         start.starts_with(
             "\xfd"
             "7zXZ") ||
         start.starts_with("\x28\xb5\x2f\xfd");
}

}  // namespace

absl::StatusOr<TextFile> TextFile::Open(
    const std::string& path, const std::function<void(int64_t bytes)>& advance) {
  TextFile file(path);
  Sha256 sha256;
  RETURN_IF_ERROR(Read(
      path,
      [&](std::string_view bytes) {
        sha256.Update(bytes);
        advance(static_cast<int64_t>(bytes.size()));
      },
      [&](std::string_view line, int64_t number) -> absl::Status {
        if (number == 1 && IsCompressed(line)) {
          return absl::InvalidArgumentError(
              absl::StrCat(path, " is compressed; unpack it"));
        }
        if (IsUtf8(line)) return absl::OkStatus();
        return absl::InvalidArgumentError(
            absl::StrCat(path, " line ", number,
                         " is not UTF-8; convert the file, for example with iconv"));
      },
      file.identity_));
  if (file.identity_.bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is empty"));
  }
  file.sha256_ = sha256.Hex();
  return file;
}

absl::Status TextFile::ForEachLine(const LineFunction& fn) const {
  Identity identity;
  RETURN_IF_ERROR(Read(
      path_, [](std::string_view) {}, fn, identity));
  return identity == identity_ ? absl::OkStatus() : Changed(path_);
}

absl::StatusOr<TextFile::Identity> TextFile::IdentityOf(const InputFile& file) {
  ASSIGN_OR_RETURN(const struct stat info, file.Stat());
  return Identity{info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec,
                  info.st_mtim.tv_nsec};
}

absl::Status TextFile::Read(const std::string& path,
                            const std::function<void(std::string_view)>& on_bytes,
                            const LineFunction& on_line, Identity& identity) {
  ASSIGN_OR_RETURN(const InputFile file, InputFile::OpenRegular(path));
  ASSIGN_OR_RETURN(identity, IdentityOf(file));

  std::string buffer(kBlockBytes, '\0');
  size_t held = 0;  // bytes of a line whose end hasn't been read yet
  int64_t number = 1;
  while (true) {
    if (held == buffer.size()) {
      if (held >= kMaxLineBytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, " line ", number, " is longer than ", FormatBytes(kMaxLineBytes),
            "; a text has a sentence or a paragraph on each line"));
      }
      buffer.resize(2 * buffer.size());
    }
    ASSIGN_OR_RETURN(const size_t got,
                     file.Read(buffer.data() + held, buffer.size() - held));
    if (got == 0) break;
    const std::string_view filled(buffer.data(), held + got);
    on_bytes(filled.substr(held));
    size_t begin = 0;
    for (size_t end = filled.find('\n', held); end != filled.npos;
         end = filled.find('\n', begin)) {
      RETURN_IF_ERROR(on_line(filled.substr(begin, end - begin), number++));
      begin = end + 1;
    }
    held = filled.size() - begin;
    std::memmove(buffer.data(), buffer.data() + begin, held);
  }
  if (held > 0) RETURN_IF_ERROR(on_line({buffer.data(), held}, number));

  ASSIGN_OR_RETURN(const Identity at_end, IdentityOf(file));
  return at_end == identity ? absl::OkStatus() : Changed(path);
}

}  // namespace moe
