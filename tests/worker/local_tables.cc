#include "tests/worker/local_tables.h"

#include <algorithm>
#include <cmath>

#include "glog/logging.h"

namespace moe::testing {

void LocalTables::Set(Table table, std::vector<float> rows) {
  CHECK_EQ(static_cast<int64_t>(rows.size()), vocabulary_ * columns(table));
  rows_[table] = std::move(rows);
}

absl::Status LocalTables::SendPull(uint64_t version, PullFor purpose, Table table,
                                   std::span<const int32_t> words) {
  pulls_.push_back({version, table, {words.begin(), words.end()}, purpose});
  return absl::OkStatus();
}

absl::Status LocalTables::AwaitPull(uint64_t version, Table table,
                                    std::span<const int32_t> words,
                                    std::span<float> out) {
  CHECK(std::any_of(pulls_.begin(), pulls_.end(), [&](const Pull& pull) {
    return pull.version == version && pull.table == table &&
           std::equal(pull.words.begin(), pull.words.end(), words.begin(), words.end());
  })) << "awaits what it didn't ask for";
  const int64_t width = columns(table);
  CHECK_EQ(out.size(), words.size() * width);
  for (size_t i = 0; i < words.size(); ++i) {
    std::copy_n(rows_.at(table).begin() + words[i] * width, width,
                out.begin() + static_cast<int64_t>(i) * width);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> LocalTables::Score(uint64_t, uint32_t, uint64_t,
                                                       std::span<const ScoreCall> calls) {
  std::vector<double> losses;
  for (const ScoreCall& call : calls) {
    double& loss = losses.emplace_back();
    for (size_t t = 0; t < call.target.size(); ++t) {
      if (call.target[t] < 0) continue;
      double sum = 0;
      double of_target = 0;
      for (int64_t word = 0; word < vocabulary_; ++word) {
        const float* row = rows_.at(Table::kSoftmax).data() + word * (d_ + 1);
        double logit = row[d_];
        for (int64_t c = 0; c < d_; ++c) logit += double{row[c]} * call.x[t * d_ + c];
        sum += std::exp(logit);
        if (word == call.target[t]) of_target = logit;
      }
      loss += std::log(sum) - of_target;
    }
  }
  return losses;
}

}  // namespace moe::testing
