// Files of named tensors in the safetensors format (github.com/huggingface/safetensors):
//
//   u64 little-endian  n
//   n bytes            JSON object {name: {"dtype", "shape", "data_offsets": [begin, end]},
//                      ..., "__metadata__": {string: string}}, padded with spaces so that
//                      the data begins at a multiple of 8
//   rest               the tensors, row-major and little-endian, without gaps; offsets
//                      count from here
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/file.h"
#include "common/io/mapped_file.h"

namespace moe {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "U8", "I64", ...
  std::vector<int64_t> shape;
  // Not owned.
  const void* data = nullptr;
  size_t bytes = 0;
};

// What a caller may follow of a file as it is written, or do for it. Entries by their place in
// `entries`, in the order of the file.
struct SafetensorsWatch {
  // Of each entry, kAhead entries before its turn: its data will be needed.
  std::function<void(size_t entry)> soon;
  static constexpr size_t kAhead = 8;
  // Appends the entry's bytes, all of them, instead of what its `data` is; for what isn't in memory
  // at once. An error ends the writing.
  std::function<absl::Status(size_t entry, FileSink& sink)> contents;
  // All bytes of the file.
  std::function<void(std::string_view bytes)> written;
};

// Atomic. Names are unique and not "__metadata__"; bytes fits dtype and shape. The data
// of entries with wider elements comes first, so that every element lies aligned;
// otherwise the order is kept.
absl::Status WriteSafetensors(const std::string& path,
                              std::span<const SafetensorsEntry> entries,
                              const std::map<std::string, std::string>& metadata,
                              const SafetensorsWatch& watch = {});

// A mapped file. Immutable, hence usable from any thread.
class SafetensorsFile {
 public:
  // Checks the whole header: every entry's data lies in the file, has the size of its
  // shape, and overlaps no other. NOT_FOUND if there is no file, DATA_LOSS if it is
  // damaged.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // NOT_FOUND names the file and the entry. The data lives as long as this object, and is
  // aligned for its elements if the file was written by WriteSafetensors.
  absl::StatusOr<SafetensorsEntry> Find(std::string_view name) const;
  // In the order of their data.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

 private:
  SafetensorsFile(std::string path, std::unique_ptr<MappedFile> file);
  absl::Status Parse();

  const std::string path_;
  const std::unique_ptr<MappedFile> file_;
  std::map<std::string, std::string> metadata_;
  std::vector<SafetensorsEntry> entries_;
  absl::flat_hash_map<std::string, size_t> index_;  // name -> position in entries_
};

}  // namespace moe
