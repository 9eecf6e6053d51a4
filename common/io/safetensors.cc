#include "common/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/base/string_view.h"
#include "common/io/file.h"
#include "common/io/sha256.h"
#include "glog/logging.h"
#include "nlohmann/json.hpp"

static_assert(std::endian::native == std::endian::little);

namespace moe {
namespace {

constexpr char kMetadata[] = "__metadata__";
constexpr size_t kLengthBytes = sizeof(uint64_t);
constexpr size_t kAlignment = 8;
constexpr size_t kBlockBytes = 1 << 20;
// The format's own limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// Bytes of an element; 0 if the format has no such type.
size_t ElementBytes(const std::string& dtype) {
  static const auto* const sizes = new std::map<std::string, size_t>{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  const auto it = sizes->find(dtype);
  return it == sizes->end() ? 0 : it->second;
}

// false if it is more than a size_t holds.
bool TensorBytes(size_t element_bytes, const std::vector<int64_t>& shape, size_t* bytes) {
  *bytes = element_bytes;
  for (int64_t extent : shape) {
    if (__builtin_mul_overflow(*bytes, static_cast<size_t>(extent), bytes)) return false;
  }
  return true;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status CheckEntries(const std::string& path,
                          std::span<const SafetensorsEntry> entries) {
  std::set<std::string_view> names;
  for (const SafetensorsEntry& entry : entries) {
    const std::string where =
        absl::StrCat("cannot write ", path, ": entry \"", entry.name, "\"");
    if (entry.name == kMetadata || !names.insert(entry.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": name is taken"));
    }
    size_t bytes = 0;
    if (ElementBytes(entry.dtype) == 0 ||
        std::any_of(entry.shape.begin(), entry.shape.end(),
                    [](int64_t n) { return n < 0; }) ||
        !TensorBytes(ElementBytes(entry.dtype), entry.shape, &bytes) ||
        bytes != entry.bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": ", entry.bytes, " bytes are no tensor of type ",
                       entry.dtype, " and shape ", ShapeText(entry.shape)));
    }
  }
  return absl::OkStatus();
}

class WatchedSink : public FileSink {
 public:
  WatchedSink(FileSink& sink, const SafetensorsWatch& watch)
      : sink_(sink), watch_(watch) {}
  absl::Status Append(std::string_view bytes) override {
    bytes_ += bytes.size();
    if (watch_.written) watch_.written(bytes);
    return sink_.Append(bytes);
  }
  // So far.
  size_t bytes() const { return bytes_; }

 private:
  FileSink& sink_;
  const SafetensorsWatch& watch_;
  size_t bytes_ = 0;
};

// entry.offset is set once the offsets are checked.
struct HeaderEntry {
  SafetensorsEntry entry;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Reads a member of the header; the error says what is wrong with it.
absl::StatusOr<HeaderEntry> ParseEntry(const std::string& name,
                                       const nlohmann::json& value) {
  const auto error = [&](const auto&... what) {
    return absl::DataLossError(absl::StrCat("entry \"", name, "\": ", what...));
  };
  if (!value.is_object()) return error("not an object");
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(key)) return error("no ", key);
  }
  HeaderEntry result;
  result.entry.name = name;
  const nlohmann::json& dtype = value["dtype"];
  if (!dtype.is_string() || ElementBytes(dtype.get<std::string>()) == 0) {
    return error("unknown dtype ", dtype.dump());
  }
  result.entry.dtype = dtype.get<std::string>();

  const auto is_extent = [](const nlohmann::json& n) {
    return n.is_number_unsigned() &&
           n.get<uint64_t>() <= std::numeric_limits<int64_t>::max();
  };
  const nlohmann::json& shape = value["shape"];
  if (!shape.is_array() || !std::all_of(shape.begin(), shape.end(), is_extent)) {
    return error("bad shape ", shape.dump());
  }
  result.entry.shape = shape.get<std::vector<int64_t>>();
  if (!TensorBytes(ElementBytes(result.entry.dtype), result.entry.shape,
                   &result.entry.bytes)) {
    return error("shape ", shape.dump(), " is too large");
  }

  const nlohmann::json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !is_extent(offsets[0]) ||
      !is_extent(offsets[1]) || offsets[0] > offsets[1]) {
    return error("bad data_offsets ", offsets.dump());
  }
  result.begin = offsets[0].get<uint64_t>();
  result.end = offsets[1].get<uint64_t>();
  if (result.end - result.begin != result.entry.bytes) {
    return error("data_offsets span ", result.end - result.begin, " bytes, but dtype ",
                 result.entry.dtype, " and shape ", shape.dump(), " need ",
                 result.entry.bytes);
  }
  return result;
}

// The header if it is one JSON object with distinct keys; else *why says what is wrong.
nlohmann::json ParseHeader(std::string_view text, std::string* why) {
  // An entry nests three deep; more can only be an attempt to exhaust memory or the
  // stack.
  constexpr int kMaxDepth = 4;
  std::set<std::string> keys;
  const auto inspect = [&](int depth, nlohmann::json::parse_event_t event,
                           nlohmann::json& parsed) {
    if (depth > kMaxDepth) {
      *why = "the header is nested too deep";
      return false;
    }
    if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
        !keys.insert(parsed.get<std::string>()).second) {
      *why = absl::StrCat("entry \"", parsed.get<std::string>(), "\" occurs twice");
    }
    return true;
  };
  nlohmann::json header =
      nlohmann::json::parse(text, inspect, /*allow_exceptions=*/false);
  if (why->empty() && !header.is_object()) *why = "the header is no JSON object";
  return header;
}

}  // namespace

absl::Status WriteSafetensors(const std::string& path,
                              std::span<const SafetensorsEntry> entries,
                              const std::map<std::string, std::string>& metadata,
                              const SafetensorsWatch& watch) {
  RETURN_IF_ERROR(CheckEntries(path, entries));
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& entry : entries) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return ElementBytes(a->dtype) > ElementBytes(b->dtype);
  });

  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsEntry* entry : order) {
    header[entry->name] = {{"dtype", entry->dtype},
                           {"shape", entry->shape},
                           {"data_offsets", {offset, offset + entry->bytes}}};
    offset += entry->bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& error) {  // a string that isn't UTF-8
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write ", path, ": ", error.what()));
  }
  text.append((kAlignment - (kLengthBytes + text.size()) % kAlignment) % kAlignment, ' ');
  if (text.size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write ", path, ": header of ",
                                                   text.size(), " bytes is too large"));
  }

  return WriteFileAtomically(path, [&](FileSink& sink) -> absl::Status {
    const uint64_t length = text.size();
    std::string head(reinterpret_cast<const char*>(&length), kLengthBytes);
    head += text;
    WatchedSink watched(sink, watch);
    RETURN_IF_ERROR(watched.Append(head));
    size_t said = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      for (; said < std::min(order.size(), i + 1 + SafetensorsWatch::kAhead); ++said) {
        if (watch.soon) watch.soon(order[said] - entries.data());
      }
      const SafetensorsEntry& entry = *order[i];
      if (!watch.contents) {
        RETURN_IF_ERROR(
            watched.Append({static_cast<const char*>(entry.data), entry.bytes}));
        continue;
      }
      const size_t end = watched.bytes() + entry.bytes;
      RETURN_IF_ERROR(watch.contents(order[i] - entries.data(), watched));
      CHECK_EQ(watched.bytes(), end) << path << ": " << entry.name;
    }
    return absl::OkStatus();
  });
}

SafetensorsFile::SafetensorsFile(std::string path, std::string sha256, InputFile file)
    : path_(std::move(path)), sha256_(std::move(sha256)), file_(std::move(file)) {}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path, std::string sha256) {
  ASSIGN_OR_RETURN(InputFile input, InputFile::OpenRegular(path));
  std::unique_ptr<SafetensorsFile> file(
      new SafetensorsFile(path, std::move(sha256), std::move(input)));
  RETURN_IF_ERROR(
      Annotate(file->Parse(), absl::StrCat(path, " is damaged or no safetensors file")));
  return file;
}

absl::Status SafetensorsFile::Parse() {
  ASSIGN_OR_RETURN(const struct stat info, file_.Stat());
  const auto size = static_cast<uint64_t>(info.st_size);
  uint64_t header_bytes = 0;
  if (size < kLengthBytes) {
    return absl::DataLossError(absl::StrCat("it has only ", size, " bytes"));
  }
  RETURN_IF_ERROR(file_.ReadAt(0, reinterpret_cast<char*>(&header_bytes), kLengthBytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - kLengthBytes) {
    return absl::DataLossError(absl::StrCat("its header of ", header_bytes,
                                            " bytes is beyond the file's ", size,
                                            " bytes or the limit of ", kMaxHeaderBytes));
  }
  std::string text(header_bytes, '\0');
  RETURN_IF_ERROR(file_.ReadAt(kLengthBytes, text.data(), text.size()));
  std::string why;
  const nlohmann::json header = ParseHeader(text, &why);
  if (!why.empty()) return absl::DataLossError(why);
  data_begin_ = kLengthBytes + header_bytes;
  const uint64_t data_bytes = size - data_begin_;

  std::vector<HeaderEntry> found;
  for (const auto& [name, value] : header.items()) {
    if (name != kMetadata) {
      ASSIGN_OR_RETURN(found.emplace_back(), ParseEntry(name, value));
      continue;
    }
    if (!value.is_object()) return absl::DataLossError("__metadata__ is not an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) {
        return absl::DataLossError(
            absl::StrCat("__metadata__ \"", key, "\" is not a string"));
      }
      metadata_[key] = text.get<std::string>();
    }
  }

  std::sort(found.begin(), found.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::tie(a.begin, a.end, a.entry.name) <
           std::tie(b.begin, b.end, b.entry.name);
  });
  uint64_t end = 0;
  for (HeaderEntry& item : found) {
    if (item.end > data_bytes) {
      return absl::DataLossError(absl::StrCat("entry \"", item.entry.name,
                                              "\" ends at byte ", item.end, " of ",
                                              data_bytes, " bytes of data"));
    }
    if (item.begin != end) {
      return absl::DataLossError(
          absl::StrCat("entry \"", item.entry.name, "\" begins at byte ", item.begin,
                       ", which ", item.begin < end ? "overlaps" : "leaves a gap after",
                       " the data up to byte ", end));
    }
    end = item.end;
    item.entry.offset = data_begin_ + item.begin;
    index_[item.entry.name] = entries_.size();
    entries_.push_back(std::move(item.entry));
  }
  if (end != data_bytes) {
    return absl::DataLossError(
        absl::StrCat("its entries take ", end, " of ", data_bytes, " bytes of data"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsEntry> SafetensorsFile::Find(std::string_view name) const {
  const auto it = index_.find(ToAbsl(name));
  if (it == index_.end()) {
    return absl::NotFoundError(
        absl::StrCat(path_, " has no entry \"", ToAbsl(name), "\""));
  }
  return entries_[it->second];
}

absl::StatusOr<std::string> SafetensorsFile::Read(const SafetensorsEntry& entry) const {
  std::string bytes(entry.bytes, '\0');
  RETURN_IF_ERROR(file_.ReadAt(entry.offset, bytes.data(), bytes.size()));
  return bytes;
}

absl::Status SafetensorsFile::ReadAll(const Block& block) const {
  Sha256 sha;
  std::string head(data_begin_, '\0');
  RETURN_IF_ERROR(file_.ReadAt(0, head.data(), head.size()));
  sha.Update(head);
  std::vector<char> buffer(kBlockBytes);
  for (const SafetensorsEntry& entry : entries_) {
    for (size_t begin = 0; begin < entry.bytes; begin += buffer.size()) {
      const size_t size = std::min(buffer.size(), entry.bytes - begin);
      RETURN_IF_ERROR(file_.ReadAt(entry.offset + begin, buffer.data(), size));
      const std::string_view bytes(buffer.data(), size);
      sha.Update(bytes);
      block(entry, begin, bytes);
    }
  }
  if (const std::string found = sha.Hex(); !sha256_.empty() && found != sha256_) {
    return absl::DataLossError(absl::StrCat(path_, ": is damaged: its SHA-256 is ", found,
                                            ", the manifest says ", sha256_));
  }
  return absl::OkStatus();
}

}  // namespace moe
