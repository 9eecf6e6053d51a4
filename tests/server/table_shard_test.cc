#include "server/table_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/tensor/bytes.h"
#include "server/shard_file.h"
#include "tests/server/made_step.h"
#include "tests/server/write_now.h"

namespace moe {
namespace {

using testing::Floats;

constexpr int64_t kVocabulary = 9000;
constexpr int64_t kWidth = testing::kWidth;

v1::Job TableJob(const std::string& optimizer = "adam {}") {
  v1::Job job = testing::MadeJob(optimizer);
  job.mutable_model()->set_vocabulary(kVocabulary);
  job.mutable_model()->mutable_tables()->set_shards(2);
  job.mutable_model()->mutable_tables()->set_candidates(3);
  return job;
}

class TableShardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = MakeCpuBackend(2, &error);
    ASSERT_NE(backend_, nullptr) << error;
  }

  std::unique_ptr<TableShard> Make(const v1::Job& job, const std::string& id) {
    plan_ = MakeModelPlan(job);
    for (const ShardSpec& spec : plan_.shards) {
      if (spec.id != id) continue;
      auto shard = std::make_unique<TableShard>(*backend_, plan_, spec, job);
      shard->Initialize();
      return shard;
    }
    ADD_FAILURE() << "no shard " << id;
    return nullptr;
  }
  std::vector<float> InitialValues(const v1::Job& job, const std::string& tensor) const {
    for (const TensorSpec& spec : plan_.tensors) {
      if (spec.name != tensor) continue;
      std::vector<float> values(spec.size());
      FillInitialValues(job.seed(), spec, values.data());
      return values;
    }
    ADD_FAILURE() << "no tensor " << tensor;
    return {};
  }

  std::unique_ptr<Backend> backend_;
  ModelPlan plan_;
};

TEST_F(TableShardTest, ContentIsRowsOfTheInitialValues) {
  const v1::Job job = TableJob();
  const std::unique_ptr<TableShard> shard = Make(job, "softmax/rows1");
  ASSERT_EQ(shard->rows(), kVocabulary / 2);
  ASSERT_EQ(shard->columns(), kWidth + 1);
  const std::vector<float> w = InitialValues(job, "softmax.rows1.w");
  const std::vector<int32_t> index = {0, 17, 4499};
  const std::vector<float> content = Floats(shard->Content(index));
  ASSERT_EQ(content.size(), index.size() * (kWidth + 1));
  for (size_t i = 0; i < index.size(); ++i) {
    for (int64_t c = 0; c < kWidth; ++c) {
      EXPECT_EQ(content[i * (kWidth + 1) + c], w[index[i] * kWidth + c]);
    }
    EXPECT_EQ(content[i * (kWidth + 1) + kWidth], 0);
  }
}

// Gradients of some rows from three replicas, over several steps: each row by Adam with its own
// count, and the rows that nobody touched as they were.
TEST_F(TableShardTest, RowsAreUpdatedWithTheirOwnCount) {
  const v1::Job job = TableJob();
  const std::unique_ptr<TableShard> shard = Make(job, "softmax/rows0");
  const std::vector<int32_t> watched = {0, 3, 5, 4100};
  std::vector<double> w;
  for (float value : Floats(shard->Content(watched))) w.push_back(value);
  const int64_t width = kWidth + 1;
  std::vector<double> m(w.size()), v(w.size());
  std::vector<int> count(watched.size());

  // By step, replica: the touched rows; row 3 comes from two replicas, row 5 with gradient zero.
  const std::vector<std::vector<std::vector<uint32_t>>> touched = {
      {{0, 3}, {3, 5}, {}}, {{}, {}, {3}}, {{5}, {4100}, {0, 3}}};
  for (size_t step = 0; step < touched.size(); ++step) {
    std::vector<double> gradient(w.size());
    std::vector<bool> is_touched(watched.size());
    for (uint32_t r = 0; r < 3; ++r) {
      SparseRows rows;
      rows.row = touched[step][r];
      for (const uint32_t row : rows.row) {
        const size_t i = std::find(watched.begin(), watched.end(), row) - watched.begin();
        is_touched[i] = true;
        for (int64_t c = 0; c < width; ++c) {
          const float g = row == 5 ? 0 : std::sin(1.0f + step + 3 * r + 7 * i + c);
          rows.value.push_back(g);
          gradient[i * width + c] += g;
        }
      }
      EXPECT_FALSE(shard->complete());
      ASSERT_TRUE(shard->AddGradient({0, r}, std::move(rows)).ok());
    }
    ASSERT_TRUE(shard->complete());
    std::vector<v1::TensorSquareSum> sums;
    shard->AppendSquareSums(&sums);
    ASSERT_EQ(sums.size(), 2u);
    double squares = 0;
    for (double g : gradient) squares += g * g;
    EXPECT_NEAR(sums[0].sum() + sums[1].sum(), squares, 1e-5 * squares);
    shard->Apply(0.1, 0.5);

    for (size_t i = 0; i < watched.size(); ++i) {
      if (!is_touched[i]) continue;
      ++count[i];
      for (int64_t c = 0; c < width; ++c) {
        const size_t at = i * width + c;
        const double g = 0.5 * gradient[at];
        m[at] = 0.9 * m[at] + 0.1 * g;
        v[at] = 0.999 * v[at] + 0.001 * g * g;
        w[at] -= 0.1 * m[at] / (1 - std::pow(0.9, count[i])) /
                 (std::sqrt(v[at] / (1 - std::pow(0.999, count[i]))) + 1e-8);
      }
    }
    const std::vector<float> got = Floats(shard->Content(watched));
    for (size_t at = 0; at < w.size(); ++at) EXPECT_NEAR(got[at], w[at], 1e-5) << step;
  }

  shard->CountPulled(7, /*evaluation=*/false);
  shard->CountPulled(4, /*evaluation=*/true);
  shard->CountPulled(2, /*evaluation=*/true);
  v1::ShardStatus status;
  shard->FillStatus(&status);
  EXPECT_EQ(status.rows_pushed(), 3u + 1u + 4u - 0u);
  EXPECT_EQ(status.rows_touched(), 4u);
  EXPECT_EQ(status.rows_pulled(), 7u);
  EXPECT_EQ(status.evaluation_rows_pulled(), 6u);
  EXPECT_EQ(status.parameter_bytes(), shard->rows() * width * 4);
  EXPECT_EQ(status.optimizer_bytes(), shard->rows() * 2 * width * 4);
}

// One second moment a row and no first one.
TEST_F(TableShardTest, RowsMayKeepOneMomentEach) {
  v1::Job job = TableJob("adam {}");
  v1::Adam& adam = *job.mutable_optimizer()->mutable_tables();
  adam.set_beta1(0);
  adam.set_beta2(0.9f);
  adam.set_epsilon(1e-8f);
  adam.set_second_moment(v1::SECOND_MOMENT_PER_ROW);
  const std::unique_ptr<TableShard> shard = Make(job, "softmax/rows0");
  const std::vector<int32_t> watched = {3};
  const int64_t width = kWidth + 1;
  std::vector<double> w;
  for (float value : Floats(shard->Content(watched))) w.push_back(value);
  double v_w = 0, v_b = 0;
  for (int count = 1; count <= 3; ++count) {
    std::vector<float> gradient;
    for (int64_t c = 0; c < width; ++c) gradient.push_back(std::sin(count + 2.0f * c));
    ASSERT_TRUE(shard->AddGradient({0, 0}, {{3}, gradient}).ok());
    ASSERT_TRUE(shard->AddGradient({0, 1}, {}).ok());
    ASSERT_TRUE(shard->AddGradient({0, 2}, {}).ok());
    shard->Apply(0.1, 1);
    double squares = 0;
    for (int64_t c = 0; c < kWidth; ++c) squares += double{gradient[c]} * gradient[c];
    v_w = 0.9 * v_w + 0.1 * squares / kWidth;
    v_b = 0.9 * v_b + 0.1 * double{gradient[kWidth]} * gradient[kWidth];
    const double correction = 1 - std::pow(0.9, count);
    for (int64_t c = 0; c < width; ++c) {
      w[c] -=
          0.1 * gradient[c] / (std::sqrt((c < kWidth ? v_w : v_b) / correction) + 1e-8);
    }
    const std::vector<float> got = Floats(shard->Content(watched));
    for (int64_t c = 0; c < width; ++c) EXPECT_NEAR(got[c], w[c], 1e-5) << count;
  }
  v1::ShardStatus status;
  shard->FillStatus(&status);
  EXPECT_EQ(status.optimizer_bytes(), shard->rows() * 2 * 4);
}

TEST_F(TableShardTest, ScoreIsTheSoftmaxOverItsWords) {
  const v1::Job job = TableJob();
  const std::unique_ptr<TableShard> shard = Make(job, "softmax/rows1");
  const std::vector<float> w = InitialValues(job, "softmax.rows1.w");
  constexpr int64_t kTokens = 7;
  std::vector<float> x(kTokens * kWidth);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 3 * std::sin(1.0f + 5 * i);
  Tensor device(*backend_, kTokens, kWidth);
  device.Upload(x);
  // Words of this shard begin at 4500; the rest are another's or padding.
  const std::vector<int32_t> target = {4500, 4499, 8999, -1, 0, 6000, 8595};
  const v1::ShardScore score = shard->Score(device.view(), target);
  EXPECT_EQ(score.shard(), "softmax/rows1");
  const auto largest = GetArray<float>("largest", score.largest());
  const auto sum = GetArray<double>("sum", score.sum());
  const auto of_target = GetArray<float>("target", score.target());
  ASSERT_TRUE(largest.ok() && sum.ok() && of_target.ok());
  ASSERT_EQ(largest->size(), size_t{kTokens});
  for (int64_t t = 0; t < kTokens; ++t) {
    double most = -HUGE_VAL, expected = 0, chosen = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t v = 0; v < shard->rows(); ++v) {
        double logit = 0;
        for (int64_t i = 0; i < kWidth; ++i)
          logit += double{x[t * kWidth + i]} * w[v * kWidth + i];
        if (pass == 0) most = std::max(most, logit);
        if (pass == 1) expected += std::exp(logit - most);
        if (4500 + v == target[t]) chosen = logit;
      }
    }
    EXPECT_NEAR((*largest)[t] + std::log((*sum)[t]), most + std::log(expected), 1e-5);
    EXPECT_NEAR((*of_target)[t], chosen, 1e-5);
  }
}

TEST_F(TableShardTest, IsRestoredWithItsCounts) {
  const v1::Job job = TableJob();
  const std::unique_ptr<TableShard> shard = Make(job, "embedding/rows0");
  const auto step = [](TableShard& to, uint32_t row) {
    for (uint32_t r = 0; r < 3; ++r) {
      ASSERT_TRUE(to.AddGradient({0, r}, {{row}, std::vector<float>(kWidth, 1.5f)}).ok());
    }
    to.Apply(0.1, 1);
  };
  step(*shard, 8);
  step(*shard, 8);
  Cut cut;
  cut.folder = absl::StrCat(::testing::TempDir(), "/table-cut");
  cut.job = "made";
  cut.step = 2;
  std::filesystem::create_directories(cut.folder);
  const auto written = testing::WriteNow(*shard, cut);
  ASSERT_TRUE(written.ok()) << written.status();
  ASSERT_EQ(written->tensors_size(), 1);
  EXPECT_EQ(written->tensors(0).sha256(), shard->Digests()[0].sha256());

  const std::unique_ptr<TableShard> restored = Make(job, "embedding/rows0");
  EXPECT_NE(restored->Digests()[0].sha256(), shard->Digests()[0].sha256());
  v1::Manifest manifest;
  *manifest.add_shards() = *written;
  const auto file = OpenShardFile(cut.folder, manifest, "embedding/rows0", 2);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(
      OpenShardFile(cut.folder, manifest, "embedding/rows1", 2).status().message(),
      ::testing::HasSubstr("/manifest.json: names no file of shard embedding/rows1"));
  ASSERT_TRUE(restored->Restore(**file).ok());
  step(*shard, 8);
  step(*restored, 8);
  EXPECT_EQ(restored->Digests()[0].sha256(), shard->Digests()[0].sha256());

  manifest.mutable_shards(0)->set_sha256(std::string(64, '0'));
  const auto damaged = OpenShardFile(cut.folder, manifest, "embedding/rows0", 2);
  ASSERT_TRUE(damaged.ok()) << damaged.status();
  EXPECT_THAT(std::string(restored->Restore(**damaged).message()),
              ::testing::HasSubstr("embedding-rows0.safetensors: is damaged"));

  // Of a job with another optimizer.
  const std::unique_ptr<TableShard> sgd = Make(TableJob("sgd {}"), "embedding/rows0");
  EXPECT_THAT(std::string(sgd->Restore(**file).message()),
              ::testing::HasSubstr("is it of the same job"));
}

TEST_F(TableShardTest, MovesInBlocksOfRows) {
  const v1::Job job = TableJob();
  const std::unique_ptr<TableShard> shard = Make(job, "softmax/rows0");
  const std::unique_ptr<TableShard> copy = Make(job, "softmax/rows0");
  const auto step = [&](std::vector<uint32_t> touched) {
    for (uint32_t r = 0; r < 3; ++r) {
      SparseRows rows;
      if (r == 1) rows.row = touched;
      rows.value.assign(rows.row.size() * (kWidth + 1), 0.5f);
      EXPECT_TRUE(shard->AddGradient({0, r}, std::move(rows)).ok());
    }
    shard->Apply(0.1, 1);
  };
  const auto move = [&] {
    size_t moved = 0;
    for (int64_t p = 0; p < shard->pieces(); ++p) {
      if (shard->PieceVersion(p) == copy->PieceVersion(p)) continue;
      ++moved;
      EXPECT_TRUE(copy->SetPiece(p, shard->PieceVersion(p), shard->Piece(p)).ok());
    }
    return moved;
  };
  step({0, 3, 4499});
  EXPECT_EQ(move(), 2);
  step({3, 64});
  EXPECT_EQ(move(), 2);
  EXPECT_EQ(move(), 0);
  EXPECT_EQ(copy->Digests()[0].sha256(), shard->Digests()[0].sha256());
  EXPECT_EQ(copy->Digests()[1].sha256(), shard->Digests()[1].sha256());
  v1::ShardStatus status;
  copy->FillStatus(&status);
  EXPECT_EQ(status.rows_touched(), 4);
  // Moments and counts have moved, too.
  EXPECT_EQ(copy->Piece(0), shard->Piece(0));
  EXPECT_THAT(copy->SetPiece(70, 1, "?").message(),
              ::testing::HasSubstr("piece 70 of softmax/rows0 has 1 bytes instead of"));
}

}  // namespace
}  // namespace moe
