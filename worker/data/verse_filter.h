// Plain text out of what `diatheke -f plain` prints of a Bible:
//
//   A Psalm of David.                            title of the psalm, repeated before every
//      Psalms 3:1: LORD, how are they increased  later verse of the range; the verse is
//                                                indented then
//   Many are those who rise up against me.       second line of the same verse (some
//                                                modules)
//
//   <title ...>A Psalm.</title> <lg .../> Tobit 6:18: And he said
//                                                the title of a range may come as raw OSIS
//   (engKJV2006eb)                               the module's name, at the end
//
// Each verse becomes one line; references, titles and markup are dropped.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

class VerseFilter {
 public:
  explicit VerseFilter(std::function<void(std::string_view verse)> emit);
  void Line(std::string_view line);
  // After the last line.
  void Finish();

 private:
  void EndVerse();

  const std::function<void(std::string_view verse)> emit_;
  bool in_verse_ = false;
  std::string verse_;
  // What followed the verse's first line: more of it, or the title of the next.
  std::vector<std::string> pending_;
};

}  // namespace moe
