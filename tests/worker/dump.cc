#include "tests/worker/dump.h"

#include <cstddef>
#include <fstream>
#include <utility>

#include "glog/logging.h"

namespace moe::testing {

void Dump::Add(const std::string& name, std::vector<int64_t> shape,
               std::span<const float> values) {
  AddBytes(name, "f32", std::move(shape), values.size(), std::as_bytes(values));
}

void Dump::Add(const std::string& name, std::vector<int64_t> shape,
               std::span<const int32_t> values) {
  AddBytes(name, "i32", std::move(shape), values.size(), std::as_bytes(values));
}

void Dump::AddBytes(const std::string& name, const char* type, std::vector<int64_t> shape,
                    size_t count, std::span<const std::byte> bytes) {
  size_t size = 1;
  for (const int64_t extent : shape) size *= extent;
  CHECK_EQ(size, count) << name;
  json_["tensors"][name] = {
      {"type", type}, {"shape", std::move(shape)}, {"offset", bytes_.size()}};
  bytes_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void Dump::Write(const std::string& folder) const {
  std::ofstream(folder + "/dump.bin", std::ios::binary) << bytes_;
  std::ofstream json(folder + "/dump.json");
  json << json_.dump(1);
  json.flush();
  CHECK(json.good()) << "cannot write to " << folder;
}

std::string Path(const std::string& kind, int64_t a, int64_t b) {
  return kind + "/" + std::to_string(a) + "/" + std::to_string(b);
}

std::string Path(const std::string& kind, int64_t a, int64_t b, int64_t c) {
  return Path(kind, a, b) + "/" + std::to_string(c);
}

}  // namespace moe::testing
