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
#include "common/io/input_file.h"

namespace moe {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "U8", "I64", ...
  std::vector<int64_t> shape;
  // To be written; not owned. Null in a file that is read.
  const void* data = nullptr;
  size_t bytes = 0;
  // Of the data in a file that is read.
  uint64_t offset = 0;
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

// A file that is open for reading, not mapped: what a disk can't read is an error then and no signal.
// Any thread.
class SafetensorsFile {
 public:
  // Gets an entry's data in blocks; begin: of the block in it.
  using Block = std::function<void(const SafetensorsEntry& entry, size_t begin,
                                   std::string_view bytes)>;

  // Checks the whole header: every entry's data lies in the file, has the size of its
  // shape, and overlaps no other. NOT_FOUND if there is no file, DATA_LOSS if it is
  // damaged. sha256: what the whole file must have, as ReadAll finds out; empty: anything.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path,
                                                               std::string sha256 = "");

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // NOT_FOUND names the file and the entry.
  absl::StatusOr<SafetensorsEntry> Find(std::string_view name) const;
  // In the order of their data.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

  // The data of one of `entries`.
  absl::StatusOr<std::string> Read(const SafetensorsEntry& entry) const;
  // All data, once and in the order of the file. After DATA_LOSS, or another error, what `block` got
  // must not be used.
  absl::Status ReadAll(const Block& block) const;

 private:
  SafetensorsFile(std::string path, std::string sha256, InputFile file);
  absl::Status Parse();

  const std::string path_;
  const std::string sha256_;
  const InputFile file_;
  uint64_t data_begin_ = 0;  // in the file
  std::map<std::string, std::string> metadata_;
  std::vector<SafetensorsEntry> entries_;
  absl::flat_hash_map<std::string, size_t> index_;  // name -> position in entries_
};

}  // namespace moe
