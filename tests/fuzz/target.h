// A fuzz target: one function that takes any bytes, and must neither crash nor hang nor leak. What it
// may return is its own business; it aborts where a promise of the code under test is broken.
//
// Each target is linked twice: with libFuzzer (tests/fuzz/run.sh), which looks for inputs, and with
// replay_main.cc, an ordinary test that tries those that are known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace moe::fuzz {

// Inputs from which the search begins, by name: among them good ones of each kind.
std::map<std::string, std::string> Seeds();

// Takes pieces of an input; what is beyond its end is zero or empty.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  Reader(const uint8_t* data, size_t size)
      : bytes_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return bytes_.empty(); }
  template <typename T>
  T Take() {
    T value{};
    const std::string_view bytes = TakeBytes(sizeof(T));
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  std::string_view TakeBytes(size_t size) {
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(taken.size());
    return taken;
  }
  std::string_view Rest() { return TakeBytes(bytes_.size()); }

 private:
  std::string_view bytes_;
};

// What a Reader takes again.
template <typename T>
void Put(T value, std::string* input) {
  input->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

}  // namespace moe::fuzz
