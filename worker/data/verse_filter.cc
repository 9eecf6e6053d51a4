#include "worker/data/verse_filter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "common/base/string_view.h"

namespace moe {
namespace {

constexpr size_t kMaxBookName = 60;

size_t SkipDigits(absl::string_view text, size_t at) {
  while (at < text.size() && absl::ascii_isdigit(text[at])) ++at;
  return at;
}

// Where the text begins behind "Book 12:34: "; 0 if the line doesn't begin so.
size_t ReferenceLength(absl::string_view line) {
  const size_t colon = line.find(':');
  if (colon == line.npos || colon > kMaxBookName) return 0;
  size_t chapter = colon;
  while (chapter > 0 && absl::ascii_isdigit(line[chapter - 1])) --chapter;
  if (chapter == colon || chapter < 2 || line[chapter - 1] != ' ') return 0;
  const size_t verse_end = SkipDigits(line, colon + 1);
  if (verse_end == colon + 1 || verse_end >= line.size() || line[verse_end] != ':')
    return 0;
  return verse_end + 1;
}

// Without <title> elements and all tags; a '<' that begins no tag stays.
std::string WithoutTags(absl::string_view line) {
  std::string result;
  while (!line.empty()) {
    const size_t open = line.find('<');
    result.append(line.data(), std::min(open, line.size()));
    if (open == line.npos) break;
    line.remove_prefix(open);
    constexpr char kTitleEnd[] = "</title>";
    const size_t title_end =
        absl::StartsWith(line, "<title") ? line.find(kTitleEnd) : line.npos;
    const size_t close = line.find('>');
    if (title_end != line.npos) {
      line.remove_prefix(title_end + sizeof(kTitleEnd) - 1);
    } else if (close != line.npos && line.size() > 1 &&
               (absl::ascii_isalpha(line[1]) || line[1] == '/')) {
      line.remove_prefix(close + 1);
    } else {
      result.push_back('<');
      line.remove_prefix(1);
    }
  }
  return result;
}

bool IsModuleName(absl::string_view line) {
  return line.size() > 2 && line.front() == '(' && line.back() == ')' &&
         line.find(' ') == line.npos;
}

// Without paragraph signs and left-over USFM markers such as "\nd ".
std::string WithoutMarkup(absl::string_view text) {
  std::string result;
  while (!text.empty()) {
    if (text[0] != '\\' || text.size() < 2 || !absl::ascii_islower(text[1])) {
      result.push_back(text[0]);
      text.remove_prefix(1);
      continue;
    }
    size_t end = 1;
    while (end < text.size() && absl::ascii_isalnum(text[end])) ++end;
    if (end < text.size() && (text[end] == '*' || text[end] == ' ')) ++end;
    text.remove_prefix(end);
  }
  absl::StrReplaceAll({{"¶", " "}}, &result);
  absl::RemoveExtraAsciiWhitespace(&result);
  return result;
}

}  // namespace

VerseFilter::VerseFilter(std::function<void(std::string_view verse)> emit)
    : emit_(std::move(emit)) {}

void VerseFilter::Line(std::string_view raw) {
  const std::string untagged = WithoutTags(ToAbsl(raw));
  const absl::string_view line = absl::StripAsciiWhitespace(untagged);
  if (IsModuleName(line)) return;
  const size_t reference = ReferenceLength(line);
  if (reference == 0) {
    pending_.emplace_back(line);
    return;
  }
  const bool titled = raw.front() == ' ';
  if (titled) {
    // The title is the last paragraph, or at least the last line, before the verse.
    while (!pending_.empty() && pending_.back().empty()) pending_.pop_back();
    size_t title = pending_.size();
    while (title > 0 && !pending_[title - 1].empty()) --title;
    if (title == 0 && !pending_.empty()) title = pending_.size() - 1;
    pending_.resize(title);
  }
  EndVerse();
  in_verse_ = true;
  verse_ = std::string(line.substr(reference));
}

void VerseFilter::Finish() { EndVerse(); }

void VerseFilter::EndVerse() {
  for (const std::string& line : pending_) absl::StrAppend(&verse_, " ", line);
  pending_.clear();
  const std::string text = WithoutMarkup(verse_);
  if (in_verse_ && !text.empty()) emit_(text);
  verse_.clear();
  in_verse_ = false;
}

}  // namespace moe
