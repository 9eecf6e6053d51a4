// meta.json of prepared text: refused, or the same after it was written again.
#include <glog/logging.h>

#include "tests/fuzz/target.h"
#include "worker/data/dataset_meta.h"

namespace moe::fuzz {

std::map<std::string, std::string> Seeds() {
  DatasetMeta meta;
  meta.made_from = "text.txt, \"words\"";
  meta.vocabulary = 12;
  meta.vocabulary_sha256 = std::string(64, 'a');
  for (TextSplit split : kTextSplits)
    meta.split(split) = {3, 30, 1, std::string(64, 'b')};
  const std::string good = SerializeDatasetMeta(meta);
  std::string fraction = good;
  fraction.replace(fraction.find(": 12"), 4, ": 1e300");
  std::string negative = good;
  negative.replace(negative.find(": 30"), 4, ": -3");
  return {{"good", good},
          {"fraction", fraction},
          {"negative", negative},
          {"half", good.substr(0, good.size() / 2)},
          {"nested", std::string(300, '[')},
          {"empty", ""}};
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moe;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<DatasetMeta> meta = ParseDatasetMeta(text, "meta.json");
  if (!meta.ok()) {
    CHECK(absl::IsDataLoss(meta.status()) || absl::IsInvalidArgument(meta.status()))
        << meta.status();
    return 0;
  }
  CHECK_GE(meta->vocabulary, 0);
  for (TextSplit split : kTextSplits) CHECK_GE(meta->split(split).tokens, 0);
  const absl::StatusOr<DatasetMeta> again =
      ParseDatasetMeta(SerializeDatasetMeta(*meta), "written again");
  CHECK(again.ok()) << again.status();
  CHECK_EQ(DatasetSha256(*meta), DatasetSha256(*again));
  return 0;
}
