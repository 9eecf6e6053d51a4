#include <cstdint>
#include <string>
#include <vector>

#include "common/random/random.h"
#include "tests/cluster/local_cluster.h"

namespace moe {
namespace {

constexpr int kTopics = 4;
constexpr int kWords = 60;  // of each topic
constexpr int kFollowers = 3;

// "bakedo": a pronounceable name for word w of a topic.
std::string NameOf(int topic, int word) {
  static constexpr char kConsonants[] = "bdfgklmnprst";
  static constexpr char kVowels[] = "aeiou";
  std::string name;
  for (int n = topic * kWords + word + 1; n > 0; n /= 60) {
    name += kConsonants[n % 12];
    name += kVowels[n / 12 % 5];
  }
  return name;
}

}  // namespace

std::string SyntheticText(uint64_t seed, int sentences) {
  const RandomKey key = MakeKey(seed, Purpose::kProbe, {});
  std::string text;
  std::vector<uint32_t> bits(16);
  for (int s = 0; s < sentences; ++s) {
    FillBits(key, s, bits);
    const int topic = bits[0] % kTopics;
    const int length = 5 + bits[1] % 8;
    int word = bits[2] % kWords;
    for (int i = 0; i < length; ++i) {
      text += NameOf(topic, word);
      text += i + 1 < length ? ' ' : '\n';
      word = (word * 7 + topic + bits[3 + i] % kFollowers) % kWords;
    }
  }
  return text;
}

}  // namespace moe
