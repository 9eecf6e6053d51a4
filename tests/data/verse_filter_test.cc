#include "worker/data/verse_filter.h"

#include <gtest/gtest.h>

#include <sstream>

#include "gmock/gmock.h"

namespace moe {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Verses(const std::string& text) {
  std::vector<std::string> verses;
  VerseFilter filter([&](std::string_view verse) { verses.emplace_back(verse); });
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) filter.Line(line);
  filter.Finish();
  return verses;
}

TEST(VerseFilterTest, PlainVerses) {
  EXPECT_THAT(
      Verses("Genesis 1:1: In the beginning.\n"
             "II Timothy 4:22: The Lord: 3:16: grace.  \n\n"
             "Song of Solomon 1:2: Let him kiss me.\n"
             "(engKJV2006eb)\n"),
      ElementsAre("In the beginning.", "The Lord: 3:16: grace.", "Let him kiss me."));
}

TEST(VerseFilterTest, DropsTitlesThatRepeat) {
  EXPECT_THAT(Verses("A Psalm of David.\n"
                     "   Psalms 3:1: LORD, how. \n\n"
                     "A Psalm of David.\n"
                     "   Psalms 3:2: Many.\n"
                     "A Psalm of David.\n"
                     "   Revelation of John 22:21: Amen.    \n"
                     "(engKJV2006eb)\n"),
              ElementsAre("LORD, how.", "Many.", "Amen."));
}

TEST(VerseFilterTest, JoinsTheLinesOfAVerse) {
  EXPECT_THAT(
      Verses("A Psalm by David.\n"
             "  Psalms 3:2: Many there are,\n“There is no help.”\nSelah. \n\n"
             "A Psalm by David.\n"
             "  Psalms 3:3: But you,\nmy glory.\n\n(engWEB2015eb)\n"),
      ElementsAre("Many there are, “There is no help.” Selah.", "But you, my glory."));
}

TEST(VerseFilterTest, DropsMarkup) {
  EXPECT_THAT(
      Verses("Exodus 6:3: my name \\nd JEHOVAH\\nd* was ¶ not <w lemma=\"x\">known</w>.\n"
             "Exodus 6:4: ¶ \n"
             "<title type=\"psalm\">A <w>Psalm</w>.</title> <lg sID=\"g\"/> Tobit 6:18: "
             "And\n"
             "he said. \n"),
      ElementsAre("my name JEHOVAH was not known.", "And he said."));
}

TEST(VerseFilterTest, TextWithoutReferencesIsNoVerse) {
  EXPECT_THAT(Verses("Just some text.\n\nAt 12:30: lunch.\n"), ElementsAre("lunch."));
  EXPECT_THAT(Verses("Just some text: with a colon.\n12:30: x\n"), ElementsAre());
}

}  // namespace
}  // namespace moe
