// Bytes that lie in several places.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace moe {

// Doesn't own them.
class Pieces {
 public:
  Pieces() = default;
  explicit Pieces(std::string_view bytes) { Append(bytes); }

  void Append(std::string_view piece) {
    if (piece.empty()) return;
    pieces_.push_back(piece);
    size_ += piece.size();
  }

  size_t size() const { return size_; }
  const std::vector<std::string_view>& pieces() const { return pieces_; }

 private:
  std::vector<std::string_view> pieces_;
  size_t size_ = 0;
};

// Goes through them once.
class PiecesReader {
 public:
  // bytes must outlive the reader.
  explicit PiecesReader(const Pieces& bytes) : bytes_(bytes) {}

  size_t left() const { return bytes_.size() - at_; }
  // The next `count` bytes, of which there must be so many: where they lie, or else copied to
  // `buffer`.
  const char* Next(size_t count, char* buffer) {
    if (piece().size() - offset_ >= count) {
      const char* const there = piece().data() + offset_;
      Skip(count);
      return there;
    }
    Copy(count, buffer);
    return buffer;
  }
  void Copy(size_t count, char* out) {
    ForEach(count, [&](std::string_view part) {
      std::memcpy(out, part.data(), part.size());
      out += part.size();
    });
  }
  void Skip(size_t count) {
    ForEach(count, [](std::string_view) {});
  }
  // Calls fn with the next `count` bytes, part by part.
  template <typename Fn>
  void ForEach(size_t count, const Fn& fn) {
    at_ += count;
    while (count > 0) {
      const std::string_view part = piece().substr(offset_, count);
      fn(part);
      count -= part.size();
      offset_ += part.size();
      if (offset_ < piece().size()) continue;
      ++index_;
      offset_ = 0;
    }
  }

 private:
  std::string_view piece() const {
    return index_ < bytes_.pieces().size() ? bytes_.pieces()[index_] : std::string_view();
  }

  const Pieces& bytes_;
  size_t at_ = 0;
  size_t index_ = 0;
  size_t offset_ = 0;
};

}  // namespace moe
