// What a benchmark works on, kept from run to run: Google Benchmark calls a benchmark anew for each
// attempt at the number of iterations, and the suite (suite_main.cc) in each of its rounds.
#pragma once

#include <memory>
#include <optional>
#include <utility>

namespace moe {

// One at a time, so that memory holds that of the benchmark that runs.
template <typename Fixture, typename Key>
class KeptFixture {
 public:
  // That of the key, made by make() unless it was the last one; what is kept goes first.
  template <typename Make>
  Fixture& Get(const Key& key, const Make& make) {
    if (key_ != key) {
      fixture_ = nullptr;
      fixture_ = make();
      key_ = key;
    }
    return *fixture_;
  }

 private:
  std::optional<Key> key_;
  std::unique_ptr<Fixture> fixture_;
};

}  // namespace moe
