#include "worker/data/dataset_meta.h"

#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/io/sha256.h"
#include "nlohmann/json.hpp"

namespace moe {
namespace {

constexpr char kFormat[] = "switchyard tokens 1";

// A number of things; the exception says what it is instead.
int64_t CountOf(const nlohmann::json& json) {
  if (!json.is_number_unsigned() ||
      json.get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
    throw nlohmann::json::type_error::create(
        302, absl::StrCat("a whole number from 0 on is expected, not ", json.dump()),
        &json);
  }
  return json.get<int64_t>();
}

}  // namespace

const char* TextSplitName(TextSplit split) {
  switch (split) {
    case TextSplit::kTrain:
      return "train";
    case TextSplit::kValidation:
      return "validation";
    case TextSplit::kTest:
      return "test";
  }
  return "unknown";
}

std::string TokenFileName(TextSplit split) {
  return absl::StrCat(TextSplitName(split), ".bin");
}

std::string SerializeDatasetMeta(const DatasetMeta& meta) {
  nlohmann::ordered_json json;
  json["format"] = kFormat;
  json["made_from"] = meta.made_from;
  json["vocabulary"] = {{"words", meta.vocabulary}, {"sha256", meta.vocabulary_sha256}};
  for (TextSplit split : kTextSplits) {
    const DatasetMeta::File& file = meta.split(split);
    json["splits"][TextSplitName(split)] = {{"lines", file.lines},
                                            {"tokens", file.tokens},
                                            {"unknown", file.unknown},
                                            {"sha256", file.sha256}};
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::StatusOr<DatasetMeta> ParseDatasetMeta(const std::string& text,
                                             const std::string& source) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    if (json.at("format") != kFormat) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": the format is ", json.at("format").dump(), ", not \"",
                       kFormat, "\"; prepare the text again"));
    }
    DatasetMeta meta;
    meta.made_from = json.at("made_from").get<std::string>();
    meta.vocabulary = CountOf(json.at("vocabulary").at("words"));
    meta.vocabulary_sha256 = json.at("vocabulary").at("sha256").get<std::string>();
    for (TextSplit split : kTextSplits) {
      const nlohmann::json& from = json.at("splits").at(TextSplitName(split));
      DatasetMeta::File& file = meta.split(split);
      file.lines = CountOf(from.at("lines"));
      file.tokens = CountOf(from.at("tokens"));
      file.unknown = CountOf(from.at("unknown"));
      file.sha256 = from.at("sha256").get<std::string>();
    }
    return meta;
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(absl::StrCat(source, " is damaged: ", error.what()));
  }
}

std::string DatasetSha256(const DatasetMeta& meta) {
  std::string text = absl::StrCat(meta.vocabulary_sha256, "\n");
  for (TextSplit split : kTextSplits)
    absl::StrAppend(&text, meta.split(split).sha256, "\n");
  return Sha256Hex(text);
}

}  // namespace moe
