// meta.json of a prepared data folder, which holds
//
//   vocab.txt       a word a line; the line's number, from 0, is its id
//   train.bin, validation.bin, test.bin
//                   [tokens] int32, little-endian; each sentence ends in <eos>
//   meta.json       how they were made, and their sizes and checksums; written last, so
//                   that a folder with it is complete
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moe {

enum class TextSplit { kTrain, kValidation, kTest };

inline constexpr std::array<TextSplit, 3> kTextSplits = {
    TextSplit::kTrain, TextSplit::kValidation, TextSplit::kTest};

// "train", "validation", "test".
const char* TextSplitName(TextSplit split);

inline constexpr char kMetaFile[] = "meta.json";
inline constexpr char kVocabularyFile[] = "vocab.txt";
// "train.bin".
std::string TokenFileName(TextSplit split);

struct DatasetMeta {
  struct File {
    int64_t lines = 0;
    int64_t tokens = 0;   // <eos> included
    int64_t unknown = 0;  // tokens that are <unk>
    std::string sha256;
  };
  // The texts and options that made the data, as one text: equal texts make equal data.
  std::string made_from;
  int64_t vocabulary = 0;
  std::string vocabulary_sha256;
  std::array<File, 3> splits;  // by TextSplit

  const File& split(TextSplit split) const { return splits[static_cast<size_t>(split)]; }
  File& split(TextSplit split) { return splits[static_cast<size_t>(split)]; }
};

std::string SerializeDatasetMeta(const DatasetMeta& meta);
// source is for errors.
absl::StatusOr<DatasetMeta> ParseDatasetMeta(const std::string& text,
                                             const std::string& source);

// SHA-256 (hex) that identifies the data: over the vocabulary's and the splits'
// checksums.
std::string DatasetSha256(const DatasetMeta& meta);

}  // namespace moe
