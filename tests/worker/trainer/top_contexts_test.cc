#include "worker/trainer/top_contexts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::Key;

std::vector<int64_t> Positions(const TopContexts& contexts, int32_t layer,
                               int32_t expert) {
  std::vector<int64_t> positions;
  for (const TopContexts::Hit& hit : contexts.hits().at({layer, "", expert})) {
    positions.push_back(hit.position);
  }
  return positions;
}

TEST(TopContextsTest, KeepsTheHighestGatesOfEachExpert) {
  TopContexts contexts({.per_expert = 3});
  const std::vector<float> gates = {0.5f, 0.1f, 0.9f, 0.5f, 0.2f, 0.95f};
  for (size_t i = 0; i < gates.size(); ++i) contexts.Add(1, "", 4, gates[i], i);
  contexts.Add(1, "", 7, 0.01f, 99);
  EXPECT_THAT(Positions(contexts, 1, 4), ElementsAre(5, 2, 0));
  EXPECT_THAT(Positions(contexts, 1, 7), ElementsAre(99));
}

TEST(TopContextsTest, TheOrderOfArrivalDoesNotMatter) {
  TopContexts forth({.per_expert = 2});
  TopContexts back({.per_expert = 2});
  for (int64_t i = 0; i < 5; ++i) {
    forth.Add(0, "", 0, 0.5f, i);
    back.Add(0, "", 0, 0.5f, 4 - i);
  }
  EXPECT_THAT(Positions(forth, 0, 0), ElementsAre(0, 1));
  EXPECT_THAT(Positions(back, 0, 0), ElementsAre(0, 1));
}

TEST(TopContextsTest, OnlyTheLayerAndExpertAskedFor) {
  TopContexts contexts({.per_expert = 3, .layer = 1, .expert = 2});
  for (int32_t layer : {0, 1, 2}) {
    for (int32_t expert : {1, 2, 3}) contexts.Add(layer, "", expert, 0.5f, 0);
  }
  EXPECT_THAT(contexts.hits(), ElementsAre(Key(TopContexts::ExpertId(1, "", 2))));
}

TEST(TopContextsTest, WordsAroundTheWordAsFarAsTheTextGoes) {
  const auto vocabulary = Vocabulary::Parse("<unk>\n<eos>\na\nb\nc\n", "test");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  const std::vector<int32_t> tokens = {2, 3, 4, 1, 2, 3, 4};
  TopContexts contexts({.per_expert = 1});
  contexts.Add(1, "", 0, 0.25f, 1);
  contexts.Add(1, "recurrent", 0, 0.75f, 6);
  const auto json = nlohmann::json::parse(contexts.ToJson(tokens, *vocabulary));
  ASSERT_EQ(json["experts"].size(), 2u);
  const auto& first = json["experts"][0];
  EXPECT_EQ(first["layer"], 1);
  EXPECT_FALSE(first.contains("mixture"));
  EXPECT_EQ(first["expert"], 0);
  EXPECT_EQ(first["contexts"][0]["gate"], 0.25);
  EXPECT_EQ(first["contexts"][0]["before"], "a");
  EXPECT_EQ(first["contexts"][0]["word"], "b");
  EXPECT_EQ(first["contexts"][0]["after"], "c <eos> a b");
  EXPECT_EQ(json["experts"][1]["mixture"], "recurrent");
  const auto& second = json["experts"][1]["contexts"][0];
  EXPECT_EQ(second["position"], 6);
  EXPECT_EQ(second["before"], "a b c <eos> a b");
  EXPECT_EQ(second["word"], "c");
  EXPECT_EQ(second["after"], "");
}

}  // namespace
}  // namespace moe
