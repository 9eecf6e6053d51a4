// Tries a target's seeds, and the files in the folder of its findings: a test for each. The folder is
// the first argument. --write_seeds DIR writes the seeds there instead, for libFuzzer.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/fuzz/target.h"

namespace moe::fuzz {
namespace {

class InputTest : public ::testing::Test {
 public:
  explicit InputTest(std::string input) : input_(std::move(input)) {}
  void TestBody() override {
    // A copy of its own size, so that a sanitizer sees a read beyond its end.
    const std::vector<uint8_t> copy(input_.begin(), input_.end());
    EXPECT_EQ(LLVMFuzzerTestOneInput(copy.data(), copy.size()), 0);
  }

 private:
  const std::string input_;
};

std::map<std::string, std::string> Inputs(const std::string& folder) {
  std::map<std::string, std::string> inputs = Seeds();
  // A target of which nothing was found has no folder.
  if (!std::filesystem::exists(folder)) return inputs;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs[entry.path().filename().string()] =
        std::string(std::istreambuf_iterator<char>(file), {});
  }
  return inputs;
}

int WriteSeeds(const std::string& folder) {
  std::filesystem::create_directories(folder);
  for (const auto& [name, input] : Seeds()) {
    std::ofstream file(folder + "/" + name, std::ios::binary);
    file << input;
    if (!file.flush()) {
      std::cerr << "cannot write " << folder << "/" << name << "\n";
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace moe::fuzz

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc == 3 && std::string(argv[1]) == "--write_seeds") {
    return moe::fuzz::WriteSeeds(argv[2]);
  }
  if (argc != 2) {
    std::cerr << "Usage: " << argv[0] << " FOLDER_OF_FINDINGS | --write_seeds DIR\n";
    return 2;
  }
  for (const auto& [name, input] : moe::fuzz::Inputs(argv[1])) {
    ::testing::RegisterTest("Input", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                            [input = input]() -> ::testing::Test* {
                              return new moe::fuzz::InputTest(input);
                            });
  }
  return RUN_ALL_TESTS();
}
