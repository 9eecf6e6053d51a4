#include "common/job/model_plan.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/job/mixtures.h"
#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {
namespace {

// Of the usual initial values. Small, so that the gates begin nearly equal.
constexpr float kStrictGateScale = 0.1f;
// Of the thresholds' logarithms, for a gradient that is relative to m
// (docs/design/gating.md).
constexpr float kThresholdRate = 0.05f;

// Lists the tensors in their logical order, and by the shard that they go to.
class Planner {
 public:
  explicit Planner(const v1::Job& job) : job_(job), d_(job.model().d_model()) {}

  ModelPlan Run() {
    const v1::Model& model = job_.model();
    CHECK_GT(d_, 0);
    CHECK_GT(model.vocabulary(), 0)
        << "the vocabulary must be known before a model is planned";
    if (model.has_tables()) {
      AddTable(Table::kEmbedding);
    } else {
      AddDense(Weights("embedding", model.vocabulary(), d_, /*fan_in=*/d_));
    }
    const std::vector<Mixture> mixtures = MixturesOf(job_);
    auto mixture = mixtures.begin();
    for (int l = 0; l < model.layers_size(); ++l) {
      const v1::Layer& layer = model.layers(l);
      switch (layer.kind_case()) {
        case v1::Layer::kLstm:
          AddLstm(absl::StrCat("layer", l, ".lstm."), layer.lstm());
          break;
        case v1::Layer::kMoe:
          AddMixture(*mixture++);
          break;
        case v1::Layer::kRecurrentMoe:
          AddMixture(*mixture++);
          AddMixture(*mixture++);
          AddDense(CellBias(absl::StrCat("layer", l, ".recurrent_moe.b"),
                            layer.recurrent_moe().hidden(),
                            layer.recurrent_moe().forget_bias()));
          break;
        case v1::Layer::KIND_NOT_SET:
          LOG(FATAL) << "layer " << l << " has no kind";
      }
    }
    if (model.has_tables()) {
      AddTable(Table::kSoftmax);
    } else {
      AddDense(Weights("softmax.w", model.vocabulary(), d_, /*fan_in=*/d_));
      AddDense(Bias("softmax.b", model.vocabulary()));
    }

    CutDense();
    for (ShardSpec& shard : tables_) plan_.shards.push_back(std::move(shard));
    for (ShardSpec& shard : experts_) plan_.shards.push_back(std::move(shard));
    for (int32_t r = 0; r < job_.training().replicas(); ++r) {
      ShardSpec shard;
      shard.id = absl::StrCat("replica/", r);
      shard.kind = ShardKind::kReplica;
      shard.replica = r;
      plan_.shards.push_back(std::move(shard));
    }
    return std::move(plan_);
  }

 private:
  TensorSpec Zeros(std::string name, int64_t rows, int64_t cols) const {
    TensorSpec tensor;
    tensor.name = std::move(name);
    tensor.rows = rows;
    tensor.cols = cols;
    return tensor;
  }

  TensorSpec Weights(std::string name, int64_t rows, int64_t cols, int64_t fan_in) const {
    TensorSpec tensor = Zeros(std::move(name), rows, cols);
    const float scale = job_.model().initialization().uniform_scale();
    // A uniform number in [-b, b] has the variance b^2 / 3.
    tensor.bound = scale > 0 ? scale : static_cast<float>(std::sqrt(3.0 / fan_in));
    return tensor;
  }

  TensorSpec Bias(std::string name, int64_t cols) const {
    TensorSpec tensor = Zeros(std::move(name), 1, cols);
    tensor.bound = job_.model().initialization().uniform_scale();
    return tensor;
  }

  // Of an LSTM's gates.
  TensorSpec CellBias(std::string name, int64_t hidden, float forget_bias) const {
    TensorSpec bias = Bias(std::move(name), 4 * hidden);
    bias.offset = forget_bias;
    bias.offset_begin = hidden;
    bias.offset_end = 2 * hidden;
    return bias;
  }

  int64_t Add(TensorSpec tensor) {
    tensor.index = static_cast<int64_t>(plan_.tensors.size());
    plan_.tensors.push_back(std::move(tensor));
    return plan_.tensors.back().index;
  }

  void AddDense(TensorSpec tensor) { dense_.push_back(Add(std::move(tensor))); }

  static TensorSpec OfTable(TensorSpec tensor) {
    tensor.of_table = true;
    return tensor;
  }

  void AddTable(Table table) {
    const int64_t words = job_.model().vocabulary();
    const int64_t shards = std::min<int64_t>(job_.model().tables().shards(), words);
    const std::string name = table == Table::kEmbedding ? "embedding" : "softmax";
    for (int64_t i = 0; i < shards; ++i) {
      ShardSpec shard;
      shard.id = absl::StrCat(name, "/rows", i);
      shard.kind = ShardKind::kTable;
      shard.table = table;
      shard.first_row = words * i / shards;
      shard.rows = words * (i + 1) / shards - shard.first_row;
      const std::string prefix = absl::StrCat(name, ".rows", i);
      if (table == Table::kEmbedding) {
        shard.tensors.push_back(
            Add(OfTable(Weights(prefix, shard.rows, d_, /*fan_in=*/d_))));
      } else {
        shard.tensors.push_back(
            Add(OfTable(Weights(prefix + ".w", shard.rows, d_, /*fan_in=*/d_))));
        TensorSpec bias = Bias(prefix + ".b", 1);
        bias.rows = shard.rows;
        shard.tensors.push_back(Add(OfTable(std::move(bias))));
      }
      tables_.push_back(std::move(shard));
    }
  }

  void AddLstm(const std::string& prefix, const v1::Lstm& lstm) {
    const int64_t hidden = lstm.hidden();
    const int64_t recurrent = lstm.projection() > 0 ? lstm.projection() : hidden;
    AddDense(Weights(absl::StrCat(prefix, "wx"), d_, 4 * hidden, d_));
    AddDense(Weights(absl::StrCat(prefix, "wh"), recurrent, 4 * hidden, recurrent));
    AddDense(CellBias(absl::StrCat(prefix, "b"), hidden, lstm.forget_bias()));
    if (lstm.projection() > 0) {
      AddDense(Weights(absl::StrCat(prefix, "wp"), hidden, lstm.projection(), hidden));
    }
  }

  void AddMixture(const Mixture& mixture) {
    const v1::Moe& moe = mixture.moe;
    const std::string& prefix = mixture.tensors;
    CHECK_GT(moe.groups(), 0) << prefix;
    CHECK_EQ(moe.experts() % moe.groups(), 0) << prefix;
    const bool hierarchical = moe.k_primary() > 0;
    for (TensorSpec& tensor :
         GateTensors(prefix, mixture, hierarchical ? moe.groups() : moe.experts())) {
      AddDense(std::move(tensor));
    }
    const int32_t experts_per_group = moe.experts() / moe.groups();
    for (int32_t g = 0; g < moe.groups(); ++g) {
      ShardSpec shard;
      shard.id = absl::StrCat(mixture.shards, "group", g);
      shard.kind = ShardKind::kExpert;
      shard.layer = static_cast<int32_t>(mixture.id.layer);
      shard.mixture = mixture.id.mixture;
      shard.group = g;
      shard.first_expert = g * experts_per_group;
      shard.experts = experts_per_group;
      if (hierarchical) {
        const std::string gate = absl::StrCat(prefix, "group", g, ".");
        for (TensorSpec& tensor : GateTensors(gate, mixture, experts_per_group)) {
          shard.tensors.push_back(Add(std::move(tensor)));
          ++shard.gate_tensors;
        }
      }
      for (int32_t e = 0; e < experts_per_group; ++e) {
        AddExpert(absl::StrCat(prefix, "expert", shard.first_expert + e, ".w"), mixture,
                  &shard);
      }
      experts_.push_back(std::move(shard));
    }
  }

  // Of a gate that chooses among n.
  std::vector<TensorSpec> GateTensors(const std::string& prefix, const Mixture& mixture,
                                      int64_t n) const {
    TensorSpec wg = Zeros(absl::StrCat(prefix, "wg"), mixture.in, n);
    switch (mixture.moe.gating()) {
      case v1::GATING_SOFTMAX:
        return {wg};
      case v1::GATING_STRICTLY_BALANCED: {
        // With zeros all columns would tie, and some tokens get every expert, most none.
        wg = Weights(wg.name, mixture.in, n, mixture.in);
        wg.bound *= kStrictGateScale;
        TensorSpec threshold = Zeros(absl::StrCat(prefix, "threshold"), 1, n);
        threshold.offset = static_cast<float>(-std::log(static_cast<double>(n)));
        threshold.offset_end = n;
        threshold.own_rate = kThresholdRate;
        return {wg, threshold};
      }
      default:
        return {wg, Zeros(absl::StrCat(prefix, "wnoise"), mixture.in, n)};
    }
  }

  void AddExpert(const std::string& prefix, const Mixture& mixture, ShardSpec* shard) {
    const std::vector<int64_t> widths = ExpertWidths(mixture);
    for (size_t i = 1; i < widths.size(); ++i) {
      const int64_t in = widths[i - 1];
      TensorSpec tensor = Weights(absl::StrCat(prefix, i), in, widths[i], in);
      tensor.of_expert = true;
      tensor.bfloat16 = mixture.moe.parameters() == v1::PARAMETERS_BFLOAT16;
      shard->tensors.push_back(Add(std::move(tensor)));
    }
  }

  // Contiguous ranges of the dense tensors, so that a worker that pulls shard after shard
  // gets the parameters in the order of use. A tensor goes to the range that its middle
  // falls in.
  void CutDense() {
    const int64_t wanted = job_.training().dense_shards() > 0
                               ? job_.training().dense_shards()
                               : kDefaultDenseShards;
    const int64_t tensors = static_cast<int64_t>(dense_.size());
    const int64_t shards = std::min(wanted, tensors);
    int64_t total = 0;
    for (int64_t t : dense_) total += plan_.tensors[t].size();

    int64_t before = 0;
    ShardSpec shard = DenseShard(0);
    for (int64_t i = 0; i < tensors; ++i) {
      const int64_t index = static_cast<int64_t>(plan_.shards.size());
      const int64_t size = plan_.tensors[dense_[i]].size();
      // Of the tensors from i on, each of the shards after this one needs one.
      const bool last_chance = tensors - i == shards - index - 1;
      const bool beyond = (2 * before + size) * shards >= 2 * total * (index + 1);
      if (!shard.tensors.empty() && index + 1 < shards && (last_chance || beyond)) {
        plan_.shards.push_back(std::move(shard));
        shard = DenseShard(index + 1);
      }
      shard.tensors.push_back(dense_[i]);
      before += size;
    }
    plan_.shards.push_back(std::move(shard));
  }

  static ShardSpec DenseShard(int64_t index) {
    ShardSpec shard;
    shard.id = absl::StrCat("dense/", index);
    shard.kind = ShardKind::kDense;
    return shard;
  }

  const v1::Job& job_;
  const int64_t d_;
  ModelPlan plan_;
  std::vector<int64_t> dense_;
  std::vector<ShardSpec> tables_;
  std::vector<ShardSpec> experts_;
};

}  // namespace

ModelPlan MakeModelPlan(const v1::Job& job) { return Planner(job).Run(); }

void FillInitialValues(uint64_t seed, const TensorSpec& tensor, float* out) {
  FillInitialRows(seed, tensor, 0, tensor.rows, out);
}

void FillInitialRows(uint64_t seed, const TensorSpec& tensor, int64_t begin, int64_t rows,
                     float* out) {
  const RandomKey key = MakeKey(seed, Purpose::kInitialValue,
                                {.tensor = static_cast<uint32_t>(tensor.index)});
  for (int64_t r = 0; r < rows; ++r) {
    const std::span<float> row(out + r * tensor.cols, tensor.cols);
    if (tensor.bound > 0) {
      FillUniform(key, begin + r, row);
      for (float& value : row) value = tensor.bound * (2.0f * value - 1.0f);
    } else {
      std::fill(row.begin(), row.end(), 0.0f);
    }
    if (tensor.offset == 0) continue;
    for (int64_t c = tensor.offset_begin; c < tensor.offset_end; ++c)
      row[c] += tensor.offset;
  }
}

}  // namespace moe
