#include "common/io/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "common/io/file.h"
#include "common/io/sha256.h"
#include "gmock/gmock.h"
#include "tests/io/limited_file_size.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string TestPath(const std::string& name) { return testing::TempDir() + "/" + name; }

SafetensorsEntry Floats(const std::string& name, std::vector<int64_t> shape,
                        const std::vector<float>& values) {
  return {name, "F32", std::move(shape), values.data(), values.size() * sizeof(float)};
}

// A file with this header and so many bytes of data.
std::string Raw(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + std::string(data_bytes, '\0');
}

// Thousands of small files: nothing needs to reach the disk.
void WriteQuickly(const std::string& path, const std::string& contents) {
  std::ofstream file(path, std::ios::binary);
  file << contents;
  ASSERT_TRUE(file.flush());
}

absl::Status OpenRaw(const std::string& contents) {
  const std::string path = TestPath("raw.safetensors");
  WriteQuickly(path, contents);
  return SafetensorsFile::Open(path).status();
}

TEST(SafetensorsTest, AWriterSeesWhatItWrites) {
  const std::vector<float> values(3);
  const std::vector<uint16_t> halves(3);
  std::vector<SafetensorsEntry> entries;
  for (int i = 0; i < 20; ++i) {
    const std::string name = "t" + std::to_string(i);
    // Halves come last.
    entries.push_back(i % 2 == 0 ? Floats(name, {3}, values)
                                 : SafetensorsEntry{name, "BF16", {3}, halves.data(), 6});
  }
  std::vector<size_t> soon, now, expected;
  std::string written;
  SafetensorsWatch watch;
  watch.soon = [&](size_t entry) { soon.push_back(entry); };
  watch.contents = [&](size_t entry, FileSink& sink) {
    now.push_back(entry);
    EXPECT_EQ(soon.size(), std::min<size_t>(now.size() + SafetensorsWatch::kAhead, 20));
    const std::string_view bytes(static_cast<const char*>(entries[entry].data),
                                 entries[entry].bytes);
    EXPECT_TRUE(sink.Append(bytes.substr(0, 1)).ok());
    return sink.Append(bytes.substr(1));
  };
  watch.written = [&](std::string_view bytes) { written += bytes; };
  const std::string path = TestPath("watched.safetensors");
  ASSERT_TRUE(WriteSafetensors(path, entries, {{"a", "b"}}, watch).ok());
  for (size_t i = 0; i < 20; i += 2) expected.push_back(i);
  for (size_t i = 1; i < 20; i += 2) expected.push_back(i);
  EXPECT_EQ(soon, expected);
  EXPECT_EQ(now, expected);
  EXPECT_EQ(written, *ReadFile(path));
  // As if the data were written in one piece.
  const std::string at_once = TestPath("at_once.safetensors");
  ASSERT_TRUE(WriteSafetensors(at_once, entries, {{"a", "b"}}).ok());
  EXPECT_EQ(written, *ReadFile(at_once));
  watch.written = nullptr;
  watch.contents = [](size_t, FileSink&) { return absl::CancelledError("no more"); };
  const absl::Status ended = WriteSafetensors(path, entries, {}, watch);
  EXPECT_EQ(ended.message(), "no more");
  EXPECT_EQ(written, *ReadFile(path));
}

TEST(SafetensorsTest, RoundTrip) {
  const std::vector<float> w = {1, 2, 3, 4, 5, 6};
  const std::vector<float> bias = {-1};
  const std::vector<int64_t> counts = {1LL << 40, -5};
  const std::vector<uint16_t> halves = {0x3F80, 0xC040, 0x7F80};
  const std::string bytes = "abc";
  const SafetensorsEntry entries[] = {
      {"state", "U8", {3}, bytes.data(), 3},
      {"halves", "BF16", {3, 1}, halves.data(), 6},
      Floats("w", {2, 3}, w),
      Floats("scalar", {}, bias),
      {"nothing", "F32", {0, 4}, nullptr, 0},
      {"counts", "I64", {2}, counts.data(), 16},
  };
  const std::string path = TestPath("round_trip.safetensors");
  const std::map<std::string, std::string> metadata = {{"w#count", "12"},
                                                       {"π", "\"quoted\"\n"}};
  ASSERT_TRUE(WriteSafetensors(path, entries, metadata).ok());

  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata(), metadata);
  EXPECT_EQ((*file)->entries().size(), 6);
  for (const SafetensorsEntry& entry : entries) {
    const auto found = (*file)->Find(entry.name);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->dtype, entry.dtype);
    EXPECT_EQ(found->shape, entry.shape);
    ASSERT_EQ(found->bytes, entry.bytes);
    EXPECT_EQ(*(*file)->Read(*found),
              std::string(static_cast<const char*>(entry.data), entry.bytes));
    const size_t alignment = entry.dtype == "I64" ? 8 : entry.dtype == "F32" ? 4 : 1;
    EXPECT_EQ(found->offset % alignment, 0) << entry.name;
  }
  const absl::Status missing = (*file)->Find("v").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), AllOf(HasSubstr(path), HasSubstr("\"v\"")));
}

TEST(SafetensorsTest, ReadsAllOfItOnceAndKnowsItsChecksum) {
  // More than a block, and what doesn't fill one.
  const std::vector<float> large(600'000, 2.5f), small = {1, 2, 3};
  const SafetensorsEntry entries[] = {Floats("large", {600'000}, large),
                                      Floats("none", {0}, {}),
                                      Floats("small", {3}, small)};
  const std::string path = TestPath("all.safetensors");
  ASSERT_TRUE(WriteSafetensors(path, entries, {{"a", "b"}}).ok());
  const std::string sha256 = *Sha256File(path);
  const auto read = [&](std::map<std::string, std::string>* found) {
    const auto file = SafetensorsFile::Open(path, sha256);
    if (!file.ok()) return file.status();
    return (*file)->ReadAll(
        [&](const SafetensorsEntry& entry, size_t begin, std::string_view bytes) {
          std::string& to = (*found)[entry.name];
          EXPECT_EQ(to.size(), begin) << entry.name;
          to += bytes;
        });
  };
  std::map<std::string, std::string> found;
  ASSERT_TRUE(read(&found).ok());
  EXPECT_EQ(found.size(), 2u);
  for (const SafetensorsEntry& entry : {entries[0], entries[2]}) {
    EXPECT_EQ(found[entry.name],
              std::string(static_cast<const char*>(entry.data), entry.bytes));
  }
  const std::string good = *ReadFile(path);
  // In the metadata, in the padding's place, in the data.
  for (const size_t place : {good.find("\"b\"") + 1, good.size() / 2, good.size() - 1}) {
    std::string bad = good;
    bad[place] ^= 1;
    WriteQuickly(path, bad);
    found.clear();
    const absl::Status status = read(&found);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(path + ": is damaged"));
  }
}

TEST(SafetensorsTest, NoEntries) {
  const std::string path = TestPath("none.safetensors");
  ASSERT_TRUE(WriteSafetensors(path, {}, {}).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->entries().empty());
  EXPECT_TRUE((*file)->metadata().empty());
}

// What the reference implementation (0.4) writes for {"a": [[1, 2]], float32} and
// metadata.
TEST(SafetensorsTest, ReadsTheReferenceFormat) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}} )";
  const float values[] = {1, 2};
  std::string contents = Raw(header, 8);
  std::memcpy(contents.data() + contents.size() - 8, values, 8);
  const std::string path = TestPath("reference.safetensors");
  ASSERT_TRUE(WriteFileAtomically(path, contents).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto a = (*file)->Find("a");
  ASSERT_TRUE(a.ok());
  float read[2];
  std::memcpy(read, (*file)->Read(*a)->data(), 8);
  EXPECT_EQ(read[1], 2);
}

TEST(SafetensorsTest, HeaderIsAlignedAndPlain) {
  const std::vector<float> w = {1};
  const SafetensorsEntry entries[] = {Floats("w", {1}, w)};
  const std::string path = TestPath("aligned.safetensors");
  for (const std::string padding :
       {"", "1", "12", "123", "1234", "12345", "123456", "1234567"}) {
    ASSERT_TRUE(WriteSafetensors(path, entries, {{"padding", padding}}).ok());
    const std::string contents = *ReadFile(path);
    uint64_t length = 0;
    std::memcpy(&length, contents.data(), 8);
    EXPECT_EQ(length % 8, 0);
    EXPECT_EQ(contents[8], '{');
    EXPECT_EQ(contents.size(), 8 + length + 4);
  }
}

TEST(SafetensorsTest, RefusesWhatCantBeWritten) {
  const std::vector<float> w = {1, 2};
  const std::string path = TestPath("refused.safetensors");
  const auto write = [&](std::vector<SafetensorsEntry> entries,
                         std::map<std::string, std::string> metadata = {}) {
    return WriteSafetensors(path, entries, metadata).code();
  };
  EXPECT_EQ(write({Floats("w", {3}, w)}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write({Floats("w", {-2, -1}, w)}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write({Floats("w", {2}, w), Floats("w", {2}, w)}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write({Floats("__metadata__", {2}, w)}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write({{"w", "F31", {2}, w.data(), 8}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(write({}, {{"bad", "\xff"}}), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(SafetensorsTest, FullDiskKeepsTheOldFile) {
  const std::vector<float> small = {1};
  const std::vector<float> large(1 << 18, 2);
  const std::string path = TestPath("full.safetensors");
  const SafetensorsEntry before[] = {Floats("w", {1}, small)};
  const SafetensorsEntry after[] = {Floats("w", {1 << 18}, large)};
  ASSERT_TRUE(WriteSafetensors(path, before, {}).ok());
  absl::Status status;
  {
    LimitedFileSize limit(1 << 16);
    status = WriteSafetensors(path, after, {});
  }
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(path), HasSubstr("File too large")));
  EXPECT_EQ((*SafetensorsFile::Open(path))->entries()[0].bytes, 4);
}

TEST(SafetensorsTest, NoFile) {
  EXPECT_EQ(SafetensorsFile::Open(TestPath("missing")).status().code(),
            absl::StatusCode::kNotFound);
}

struct Hostile {
  const char* name;
  std::string contents;
  const char* why;
};

class HostileSafetensorsTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileSafetensorsTest, IsRefused) {
  const absl::Status status = OpenRaw(GetParam().contents);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("raw.safetensors"), HasSubstr(GetParam().why)));
}

std::string Deep() {
  std::string text = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) text += "[";
  return text;
}

std::string Length(uint64_t length) {
  return std::string(reinterpret_cast<const char*>(&length), 8);
}

INSTANTIATE_TEST_SUITE_P(
    All, HostileSafetensorsTest,
    ::testing::Values(
        Hostile{"Empty", "", "0 bytes"}, Hostile{"Short", "1234567", "7 bytes"},
        Hostile{"LengthBeyondFile", Length(3) + "{}", "beyond"},
        Hostile{"LengthOverflows", Length(~uint64_t{0}) + "{}", "beyond"},
        Hostile{"NoHeader", Length(0), "no JSON object"},
        Hostile{"BadJson", Raw("{\"a\":", 0), "no JSON object"},
        Hostile{"Trailing", Raw("{} x", 0), "no JSON object"},
        Hostile{"NotUtf8", Raw("{\"\xff\":{}}", 0), "no JSON object"},
        Hostile{"Array", Raw("[]", 0), "no JSON object"},
        Hostile{"Deep", Raw(Deep(), 0), "too deep"},
        Hostile{"Twice",
                Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                    R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                    1),
                "\"a\" occurs twice"},
        Hostile{"EntryIsNumber", Raw(R"({"a":1})", 0), "\"a\": not an object"},
        Hostile{"NoShape", Raw(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1),
                "no shape"},
        Hostile{"UnknownType",
                Raw(R"({"a":{"dtype":"X","shape":[1],"data_offsets":[0,1]}})", 1),
                "unknown dtype"},
        Hostile{"NumberAsType",
                Raw(R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})", 1),
                "unknown dtype"},
        Hostile{"NegativeShape",
                Raw(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1),
                "bad shape"},
        Hostile{"FractionalShape",
                Raw(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1),
                "bad shape"},
        Hostile{"ShapeOverflows",
                Raw(R"({"a":{"dtype":"U8","shape":[4294967296,4294967297],)"
                    R"("data_offsets":[0,4294967296]}})",
                    1),
                "too large"},
        Hostile{"ShapeMismatch",
                Raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
                "need 8"},
        Hostile{"OffsetsSwapped",
                Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1),
                "bad data_offsets"},
        Hostile{"OneOffset",
                Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})", 1),
                "bad data_offsets"},
        Hostile{"OutOfBounds",
                Raw(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", 7),
                "\"a\" ends at byte 8 of 7"},
        Hostile{"FarOutOfBounds",
                Raw(R"({"a":{"dtype":"U8","shape":[1],)"
                    R"("data_offsets":[9223372036854775806,9223372036854775807]}})",
                    1),
                "\"a\" ends at byte"},
        Hostile{"Overlap",
                Raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                    R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                    3),
                "\"b\" begins at byte 1, which overlaps"},
        Hostile{"SameData",
                Raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                    R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                    2),
                "overlaps"},
        Hostile{"Gap", Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
                "gap"},
        Hostile{"DataLeft",
                Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2),
                "1 of 2 bytes"},
        Hostile{"MetadataArray", Raw(R"({"__metadata__":[]})", 0), "__metadata__"},
        Hostile{"MetadataNumber", Raw(R"({"__metadata__":{"a":1}})", 0),
                "\"a\" is not a string"}),
    [](const auto& info) { return info.param.name; });

// Cut off, or with any byte changed, a file is refused or still sound; it never crashes
// us.
TEST(SafetensorsTest, SurvivesDamage) {
  const std::vector<float> w = {1, 2, 3, 4};
  const SafetensorsEntry entries[] = {Floats("w", {4}, w), Floats("v", {2, 2}, w)};
  const std::string path = TestPath("damage.safetensors");
  ASSERT_TRUE(WriteSafetensors(path, entries, {{"a", "b"}}).ok());
  const std::string good = *ReadFile(path);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(OpenRaw(good.substr(0, size)).ok()) << size;
  }
  for (size_t i = 0; i < good.size() - 32; ++i) {
    for (const char replacement : {'\0', '"', '9', '}', '\xff'}) {
      std::string bad = good;
      bad[i] = replacement;
      WriteQuickly(path, bad);
      const auto file = SafetensorsFile::Open(path);
      if (!file.ok()) continue;
      for (const SafetensorsEntry& entry : (*file)->entries()) {
        EXPECT_EQ((*file)->Read(entry)->size(), entry.bytes);
      }
    }
  }
}

}  // namespace
}  // namespace moe
