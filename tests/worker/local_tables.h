// Table shards in the test's own process.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "client/table_client.h"

namespace moe::testing {

class LocalTables final : public TableClient {
 public:
  // Of every version.
  LocalTables(int64_t vocabulary, int64_t d) : vocabulary_(vocabulary), d_(d) {}

  // rows: [vocabulary, columns].
  void Set(Table table, std::vector<float> rows);
  // What was asked for since the last call, in order.
  struct Pull {
    uint64_t version = 0;
    Table table = Table::kEmbedding;
    std::vector<int32_t> words;
    PullFor purpose = PullFor::kTraining;
    friend bool operator==(const Pull&, const Pull&) = default;
  };
  std::vector<Pull> TakePulls() { return std::exchange(pulls_, {}); }

  int64_t columns(Table table) const override {
    return table == Table::kEmbedding ? d_ : d_ + 1;
  }
  absl::Status SendPull(uint64_t version, PullFor purpose, Table table,
                        std::span<const int32_t> words) override;
  absl::Status AwaitPull(uint64_t version, Table table, std::span<const int32_t> words,
                         std::span<float> out) override;
  absl::StatusOr<std::vector<double>> Score(uint64_t batch, uint32_t wave,
                                            uint64_t version,
                                            std::span<const ScoreCall> calls) override;

 private:
  const int64_t vocabulary_;
  const int64_t d_;
  std::map<Table, std::vector<float>> rows_;
  std::vector<Pull> pulls_;
};

}  // namespace moe::testing
