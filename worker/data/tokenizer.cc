#include "worker/data/tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace moe {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

struct Character {
  char32_t code = 0;
  size_t bytes = 0;
  bool valid = true;
};

// The character at the start of text, which isn't empty.
Character Decode(std::string_view text) {
  const auto byte = [&](size_t i) -> uint32_t {
    return static_cast<unsigned char>(text[i]);
  };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  const Character invalid = {kReplacement, 1, false};
  if (lead < 0xC2 || lead > 0xF4 || bytes > text.size()) return invalid;
  char32_t code = lead & (0x7F >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return invalid;
    code = (code << 6) | (byte(i) & 0x3F);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  if (overlong || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return invalid;
  return {code, bytes};
}

void Append(char32_t code, std::string* text) {
  const auto put = [text](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  const auto put_tail = [&](int shift) { put(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put_tail(0);
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put_tail(6);
    put_tail(0);
  } else {
    put(0xF0 | (code >> 18));
    put_tail(12);
    put_tail(6);
    put_tail(0);
  }
}

bool In(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }

// A locale would make the tokens depend on the machine.
char32_t ToLower(char32_t c) {
  if (c < 0x80) return In(c, 'A', 'Z') ? c + 32 : c;
  if (In(c, 0xC0, 0xDE)) return c == 0xD7 ? c : c + 32;
  // Alphabets whose capitals alternate with their small letters.
  const bool even_capitals = In(c, 0x100, 0x12F) || In(c, 0x132, 0x137) ||
                             In(c, 0x14A, 0x177) || In(c, 0x1E00, 0x1E95) ||
                             In(c, 0x1EA0, 0x1EFF);
  const bool odd_capitals = In(c, 0x139, 0x148) || In(c, 0x179, 0x17E);
  if (even_capitals) return c | 1;
  if (odd_capitals) return c % 2 == 1 ? c + 1 : c;
  if (c == 0x130) return 'i';
  if (c == 0x178) return 0xFF;
  if (c == 0x386) return 0x3AC;
  if (In(c, 0x388, 0x38A)) return c + 37;
  if (c == 0x38C) return 0x3CC;
  if (In(c, 0x38E, 0x38F)) return c + 63;
  if (In(c, 0x391, 0x3AB)) return c == 0x3A2 ? c : c + 32;
  if (In(c, 0x400, 0x40F)) return c + 80;
  if (In(c, 0x410, 0x42F)) return c + 32;
  return c;
}

bool IsSpace(char32_t c) {
  return c <= ' ' || In(c, 0x7F, 0xA0) || c == 0xAD || c == 0x1680 ||
         In(c, 0x2000, 0x200F) || In(c, 0x2028, 0x202F) || In(c, 0x205F, 0x206F) ||
         c == 0x3000 || c == 0xFEFF;
}

bool IsDigit(char32_t c) { return In(c, '0', '9'); }

// Letters, digits, and marks that combine with them: what is neither space nor
// punctuation.
bool IsWordCharacter(char32_t c) {
  if (c < 0x80) return In(c, 'a', 'z') || In(c, 'A', 'Z') || IsDigit(c);
  if (c <= 0xBF) return c == 0xAA || c == 0xB5 || c == 0xBA;
  if (c == 0xD7 || c == 0xF7 || c == kReplacement || IsSpace(c)) return false;
  const bool symbol = In(c, 0x2010, 0x205E) || In(c, 0x20A0, 0x20CF) ||
                      In(c, 0x2190, 0x2BFF) || In(c, 0x2E00, 0x2E7F) ||
                      In(c, 0x3001, 0x3004) || In(c, 0x3008, 0x3020) ||
                      In(c, 0xFE30, 0xFE6F) || In(c, 0xFF01, 0xFF0F) ||
                      In(c, 0xFF1A, 0xFF20) || In(c, 0x1F000, 0x1FAFF);
  return !symbol;
}

bool JoinsWords(char32_t c) {
  return c == '\'' || c == 0x2019 || c == '-' || c == 0x2010 || c == 0x2011;
}
bool JoinsDigits(char32_t c) { return c == '.' || c == ','; }

}  // namespace

std::span<const std::string_view> Tokenizer::Tokenize(std::string_view line) {
  tokens_.clear();
  options_.tokenized ? Split(line) : FindWords(line);
  return tokens_;
}

void Tokenizer::Split(std::string_view line) {
  constexpr std::string_view kSpaces = " \t\r\n\v\f";
  for (size_t begin = line.find_first_not_of(kSpaces); begin != line.npos;
       begin = line.find_first_not_of(kSpaces, begin)) {
    const size_t end = std::min(line.find_first_of(kSpaces, begin), line.size());
    tokens_.push_back(line.substr(begin, end - begin));
    begin = end;
  }
}

void Tokenizer::FindWords(std::string_view line) {
  text_.clear();
  ends_.clear();
  char32_t previous = 0;  // last character of the word under way, 0 if there is none
  while (!line.empty()) {
    const Character now = Decode(line);
    line.remove_prefix(now.bytes);
    const char32_t next = line.empty() ? 0 : Decode(line).code;
    const bool joins =
        previous != 0 && ((JoinsWords(now.code) && IsWordCharacter(next)) ||
                          (JoinsDigits(now.code) && IsDigit(previous) && IsDigit(next)));
    const bool in_word = joins || IsWordCharacter(now.code);
    if (!in_word && IsSpace(now.code)) {
      previous = 0;
      continue;
    }
    if (!in_word || previous == 0) ends_.emplace_back();
    Append(options_.lowercase ? ToLower(now.code) : now.code, &text_);
    ends_.back() = text_.size();
    previous = in_word ? now.code : 0;
  }
  size_t begin = 0;
  for (const size_t end : ends_) {
    tokens_.push_back(std::string_view(text_).substr(begin, end - begin));
    begin = end;
  }
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    // Most text is ASCII, of which eight bytes are one comparison.
    uint64_t eight;
    if (text.size() >= sizeof(eight)) {
      std::memcpy(&eight, text.data(), sizeof(eight));
      if ((eight & 0x8080808080808080) == 0) {
        text.remove_prefix(sizeof(eight));
        continue;
      }
    }
    const Character c = Decode(text);
    if (!c.valid) return false;
    text.remove_prefix(c.bytes);
  }
  return true;
}

}  // namespace moe
