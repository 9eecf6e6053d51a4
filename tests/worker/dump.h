// Tensors in files, for a comparison with another implementation (torch_comparison.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace moe::testing {

// FOLDER/dump.bin holds the tensors one after the other, little-endian; FOLDER/dump.json has each
// tensor's name, type ("f32", "i32"), shape and offset in bytes ("tensors"), and what else is put
// there.
class Dump {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape,
           std::span<const float> values);
  void Add(const std::string& name, std::vector<int64_t> shape,
           std::span<const int32_t> values);
  nlohmann::json& json() { return json_; }
  void Write(const std::string& folder) const;

 private:
  void AddBytes(const std::string& name, const char* type, std::vector<int64_t> shape,
                size_t count, std::span<const std::byte> bytes);

  nlohmann::json json_;
  std::string bytes_;
};

// "a/1/2"
std::string Path(const std::string& kind, int64_t a, int64_t b);
std::string Path(const std::string& kind, int64_t a, int64_t b, int64_t c);

}  // namespace moe::testing
