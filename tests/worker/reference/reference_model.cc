#include "tests/worker/reference/reference_model.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "common/random/random.h"
#include "worker/layers/candidates.h"

namespace moe::reference {
namespace {

using Row = std::vector<double>;

double Sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
double Softplus(double z) { return std::log(1 + std::exp(z)); }
double NormalCdf(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }

// x [rows] times w [rows, cols].
Row Product(const Row& x, const Row& w) {
  const size_t cols = w.size() / x.size();
  Row y(cols, 0);
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < cols; ++j) y[j] += x[i] * w[i * cols + j];
  }
  return y;
}

double CvSquared(const Row& v) {
  double mean = 0, variance = 0;
  for (double x : v) mean += x / v.size();
  for (double x : v) variance += (x - mean) * (x - mean) / v.size();
  return mean == 0 ? 0 : variance / (mean * mean);
}

// kth_excluding(v, k, i) of eq. 9: the k-th largest of v without its element i.
double KthExcluding(Row v, int k, size_t i) {
  v.erase(v.begin() + i);
  std::sort(v.begin(), v.end(), std::greater<>());
  return v[k - 1];
}

// What the rows of a step come to in one mixture of n experts.
struct MixtureTotals {
  v1::Moe moe;
  Row importance;                       // [n]
  Row load;                             // [n]; hierarchical: of the groups' own gates
  std::vector<int64_t> rows_of_expert;  // [n]
  Row load_primary;                     // [groups], hierarchical
  std::vector<int64_t> rows_of_group;   // [groups], hierarchical

  explicit MixtureTotals(const v1::Moe& of)
      : moe(of),
        importance(moe.experts()),
        load(moe.experts()),
        rows_of_expert(moe.experts()),
        load_primary(moe.groups()),
        rows_of_group(moe.groups()) {}

  // Eq. 10 or, hierarchical, 14.
  Row Load() const {
    Row result = load;
    if (moe.k_primary() == 0) return result;
    const size_t per_group = moe.experts() / moe.groups();
    for (size_t i = 0; i < result.size(); ++i) {
      const size_t group = i / per_group;
      // No rows: 0 already.
      if (rows_of_group[group] == 0) continue;
      result[i] *= load_primary[group] / static_cast<double>(rows_of_group[group]);
    }
    return result;
  }
};

// By the prefix of the mixture's tensors.
using Totals = std::map<std::string, MixtureTotals>;

std::string LayerName(int l) { return "layer" + std::to_string(l); }

// One pass over one micro-batch of one replica.
class MicroBatchPass {
 public:
  MicroBatchPass(const v1::Job& job, const NamedValues& parameters, uint64_t step,
                 bool training, uint32_t replica, uint32_t wave)
      : job_(job),
        parameters_(parameters),
        step_(step),
        training_(training),
        replica_(replica),
        wave_(wave),
        lanes_(job.training().lanes() / job.training().waves()),
        d_(job.model().d_model()) {}

  // Returns the sum of -ln p(target). Adds to totals.
  double Run(const MicroBatch& batch, std::vector<std::vector<LaneState>>& state,
             Totals& totals) {
    target_ = batch.target;
    threshold_loss_ = 0;
    std::vector<Row> x;
    const Row table = Words("embedding", "");
    for (int32_t word : batch.input) {
      x.emplace_back(table.begin() + word * d_, table.begin() + (word + 1) * d_);
    }
    Dropout(0, job_.model().embedding_dropout(), x);

    for (int l = 0; l < job_.model().layers_size(); ++l) {
      const v1::Layer& layer = job_.model().layers(l);
      std::vector<Row> y = layer.has_lstm() ? LstmLayer(l, x, state[l])
                           : layer.has_moe()
                               ? MoeLayer(l, x, totals.at(LayerName(l) + ".moe."))
                               : RecurrentMoeLayer(l, x, state[l], totals);
      Dropout(l + 1, layer.dropout(), y);
      if (layer.residual()) {
        for (size_t t = 0; t < y.size(); ++t) {
          for (int64_t c = 0; c < d_; ++c) y[t][c] += x[t][c];
        }
      }
      x = std::move(y);
    }

    const Row w = Words("softmax", ".w");
    const Row b = Words("softmax", ".b");
    if (training_ && job_.model().has_tables()) return SampledLoss(x, w, b);
    double loss_sum = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      if (batch.target[t] < 0) continue;
      double sum = 0, of_target = 0;
      for (size_t v = 0; v < b.size(); ++v) {
        double logit = b[v];
        for (int64_t c = 0; c < d_; ++c) logit += x[t][c] * w[v * d_ + c];
        sum += std::exp(logit);
        if (static_cast<int32_t>(v) == batch.target[t]) of_target = logit;
      }
      loss_sum += std::log(sum) - of_target;
    }
    return loss_sum;
  }

  // Of the last Run.
  double threshold_loss() const { return threshold_loss_; }

 private:
  const Row& Named(const std::string& name) const { return parameters_.at(name); }
  // Of all words, whether the parameter is a table or dense.
  Row Words(const std::string& table, const std::string& part) const {
    if (!job_.model().has_tables()) return Named(table + part);
    Row all;
    for (int i = 0; i < job_.model().tables().shards(); ++i) {
      const Row& rows = Named(table + ".rows" + std::to_string(i) + part);
      all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
  }

  // The sum of -ln p(target) among the step's candidates and the target, every logit less the
  // logarithm of the probability that the draws have its word.
  double SampledLoss(const std::vector<Row>& x, const Row& w, const Row& b) const {
    const Candidates drawn = DrawCandidates(job_.seed(), step_, job_.model().vocabulary(),
                                            job_.model().tables().candidates());
    const auto factor = [&](size_t t, int32_t word) {
      const double p =
          (std::log(word + 2.0) - std::log(word + 1.0)) / std::log(b.size() + 1.0);
      double logit = b[word];
      for (int64_t c = 0; c < d_; ++c) logit += x[t][c] * w[word * d_ + c];
      return std::exp(logit) / (1 - std::pow(1 - p, static_cast<double>(drawn.draws)));
    };
    double loss_sum = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      if (target_[t] < 0) continue;
      const double of_target = factor(t, target_[t]);
      double sum = of_target;
      for (const int32_t word : drawn.words) {
        if (word != target_[t]) sum += factor(t, word);
      }
      loss_sum += std::log(sum / of_target);
    }
    return loss_sum;
  }

  RandomKey Key(Purpose purpose, uint32_t layer_id, uint32_t group = 0) const {
    return MakeKey(job_.seed(), purpose,
                   {.layer = layer_id,
                    .step = step_,
                    .wave = wave_,
                    .replica = replica_,
                    .group = group});
  }

  void Dropout(uint32_t layer_id, float rate, std::vector<Row>& y) const {
    if (!training_ || rate == 0) return;
    std::vector<float> uniform(d_);
    for (size_t t = 0; t < y.size(); ++t) {
      FillUniform(Key(Purpose::kDropout, layer_id), t, uniform);
      for (int64_t c = 0; c < d_; ++c) {
        y[t][c] = uniform[c] < rate ? 0 : y[t][c] / (1 - double{rate});
      }
    }
  }

  // Returns h, and moves the lane's c on.
  static Row Cell(const Row& from_x, const Row& from_r, const Row& b, LaneState& lane) {
    const size_t hidden = lane.c.size();
    const auto gate = [&](size_t kind, size_t u) {
      const size_t j = kind * hidden + u;
      return from_x[j] + from_r[j] + b[j];
    };
    Row h(hidden);
    for (size_t u = 0; u < hidden; ++u) {
      lane.c[u] =
          Sigmoid(gate(1, u)) * lane.c[u] + Sigmoid(gate(0, u)) * std::tanh(gate(2, u));
      h[u] = Sigmoid(gate(3, u)) * std::tanh(lane.c[u]);
    }
    return h;
  }

  std::vector<Row> RecurrentMoeLayer(int l, const std::vector<Row>& x,
                                     std::vector<LaneState>& state, Totals& totals) {
    const std::string prefix = LayerName(l) + ".recurrent_moe.";
    const v1::RecurrentMoe& layer = job_.model().layers(l).recurrent_moe();
    std::vector<Row> y;
    for (size_t t = 0; t < x.size(); ++t) {
      LaneState& lane = state[t % lanes_];
      Row from_x(4 * lane.c.size()), from_r = from_x;
      AddFlat(layer.input(), prefix + "input.", t, x[t], Key(Purpose::kGateNoise, l + 1),
              totals.at(prefix + "input."), from_x);
      AddFlat(layer.recurrent(), prefix + "recurrent.", t, lane.r,
              Key(Purpose::kRecurrentGateNoise, l + 1), totals.at(prefix + "recurrent."),
              from_r);
      lane.r = Cell(from_x, from_r, Named(prefix + "b"), lane);
      y.push_back(lane.r);
    }
    return y;
  }

  std::vector<Row> LstmLayer(int l, const std::vector<Row>& x,
                             std::vector<LaneState>& state) {
    const std::string prefix = "layer" + std::to_string(l) + ".lstm.";
    std::vector<Row> y;
    for (size_t t = 0; t < x.size(); ++t) {
      LaneState& lane = state[t % lanes_];
      const Row from_x = Product(x[t], Named(prefix + "wx"));
      const Row from_r = Product(lane.r, Named(prefix + "wh"));
      const Row h = Cell(from_x, from_r, Named(prefix + "b"), lane);
      const bool projects = job_.model().layers(l).lstm().projection() > 0;
      lane.r = projects ? Product(h, Named(prefix + "wp")) : h;
      y.push_back(lane.r);
    }
    return y;
  }

  std::vector<Row> MoeLayer(int l, const std::vector<Row>& x, MixtureTotals& totals) {
    const v1::Moe& moe = job_.model().layers(l).moe();
    const std::string prefix = "layer" + std::to_string(l) + ".moe.";
    std::vector<Row> strict;
    if (moe.gating() == v1::GATING_STRICTLY_BALANCED)
      strict = StrictlyBalancedGates(l, x);
    std::vector<Row> y;
    for (size_t t = 0; t < x.size(); ++t) {
      y.emplace_back(d_, 0.0);
      if (moe.k_primary() > 0) {
        if (IsCounted(t)) AddGroups(l, prefix, t, x[t], totals, y[t]);
      } else if (moe.gating() == v1::GATING_STRICTLY_BALANCED) {
        AddExperts(prefix, moe, 0, WithoutNoise(strict[t]), 1, x[t], totals, y[t]);
      } else {
        AddFlat(moe, prefix, t, x[t], Key(Purpose::kGateNoise, l + 1), totals, y[t]);
      }
      if (moe.sigmoid_output()) {
        for (double& value : y[t]) value = Sigmoid(value);
      }
    }
    return y;
  }

  // In evaluation rows without a target are padding.
  bool IsCounted(size_t t) const { return training_ || target_[t] >= 0; }

  // Noisy top-k and softmax gating.
  void AddFlat(const v1::Moe& moe, const std::string& prefix, size_t t, const Row& x,
               RandomKey key, MixtureTotals& totals, Row& y) const {
    if (!IsCounted(t)) return;
    const Gated gated = moe.gating() == v1::GATING_SOFTMAX
                            ? WithoutNoise(Softmax(Product(x, Named(prefix + "wg"))))
                            : NoisyTopK(prefix, x, moe.experts(), moe.k(), t, key);
    AddExperts(prefix, moe, 0, gated, 1, x, totals, y);
  }

  // Eq. 12.
  void AddGroups(int l, const std::string& prefix, size_t t, const Row& x,
                 MixtureTotals& totals, Row& y) const {
    const v1::Moe& moe = job_.model().layers(l).moe();
    const int per_group = moe.experts() / moe.groups();
    const Gated primary = NoisyTopK(prefix, x, moe.groups(), moe.k_primary(), t,
                                    Key(Purpose::kGateNoise, l + 1));
    for (int i = 0; i < moe.groups(); ++i) {
      totals.load_primary[i] += primary.load[i];
      if (primary.gate[i] == 0) continue;
      ++totals.rows_of_group[i];
      const Gated gated =
          NoisyTopK(prefix + "group" + std::to_string(i) + ".", x, per_group, moe.k(), t,
                    Key(Purpose::kSecondaryGateNoise, l + 1, i));
      AddExperts(prefix, moe, i * per_group, gated, primary.gate[i], x, totals, y);
    }
  }

  // What a gate says of one row.
  struct Gated {
    Row gate;  // 0: not chosen
    Row load;  // P(x, i); without noise 1 if chosen
  };
  static Gated WithoutNoise(const Row& gate) {
    Gated gated{gate, gate};
    for (double& load : gated.load) load = load > 0;
    return gated;
  }

  static Row Softmax(Row v) {
    double sum = 0;
    for (double& value : v) sum += value = std::exp(value);
    for (double& value : v) value /= sum;
    return v;
  }

  Gated NoisyTopK(const std::string& prefix, const Row& x, int n, int k, size_t t,
                  RandomKey key) const {
    const Row clean = Product(x, Named(prefix + "wg"));
    Row scale = Product(x, Named(prefix + "wnoise"));
    for (double& s : scale) s = Softplus(s);
    std::vector<float> noise(n, 0);
    if (training_) FillNormal(key, t, noise);
    Row h(n);  // eq. 4
    for (int i = 0; i < n; ++i) h[i] = clean[i] + noise[i] * scale[i];

    // Eq. 3 and 5; a tie goes to the lower expert.
    Row kept(n, -std::numeric_limits<double>::infinity());
    for (int i = 0; i < n; ++i) {
      int above = 0;
      for (int j = 0; j < n; ++j) above += h[j] > h[i] || (h[j] == h[i] && j < i);
      if (above < k) kept[i] = h[i];
    }
    Gated gated = WithoutNoise(Softmax(kept));
    for (int i = 0; i < n && k < n && training_; ++i) {
      gated.load[i] = NormalCdf((clean[i] - KthExcluding(h, k, i)) / scale[i]);  // eq. 9
    }
    return gated;
  }

  // Eq. 15-19 for all tokens; adds eq. 20 to threshold_loss_.
  std::vector<Row> StrictlyBalancedGates(int l, const std::vector<Row>& x) {
    const v1::Moe& moe = job_.model().layers(l).moe();
    const std::string prefix = "layer" + std::to_string(l) + ".moe.";
    const int n = moe.experts();
    const size_t m = moe.k() * x.size() / n;
    const Row& threshold = Named(prefix + "threshold");
    std::vector<Row> log_g;
    for (const Row& row : x) {
      log_g.push_back(Softmax(Product(row, Named(prefix + "wg"))));
      for (double& value : log_g.back()) value = std::log(value);
    }
    std::vector<Row> gates(x.size(), Row(n, 0));
    for (int i = 0; i < n; ++i) {
      std::vector<size_t> order(x.size());
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        const auto bits = [&](size_t t) {
          return Bits(Key(Purpose::kGateTie, l + 1), t, i);
        };
        return log_g[a][i] != log_g[b][i] ? log_g[a][i] > log_g[b][i] : bits(a) < bits(b);
      });
      for (size_t j = 0; j < order.size(); ++j) {
        const size_t t = order[j];
        const bool above = log_g[t][i] > threshold[i];
        const bool chosen = training_ ? j < m : above && target_[t] >= 0;
        if (chosen) gates[t][i] = std::exp(log_g[t][i]);
        if (training_) {
          threshold_loss_ +=
              (above - (j < m)) * (log_g[t][i] - threshold[i]) * x.size() / m;
        }
      }
    }
    for (Row& row : gates) {
      const double sum = std::accumulate(row.begin(), row.end(), 0.0);
      if (sum == 0) continue;
      for (double& gate : row) gate /= sum;
    }
    return gates;
  }

  // The experts from `first` on, with their gates times `factor`.
  void AddExperts(const std::string& prefix, const v1::Moe& moe, int first,
                  const Gated& gated, double factor, const Row& x, MixtureTotals& totals,
                  Row& y) const {
    for (size_t i = 0; i < gated.gate.size(); ++i) {
      const double gate = factor * gated.gate[i];
      totals.importance[first + i] += gate;
      totals.load[first + i] += gated.load[i];
      if (gate == 0) continue;
      ++totals.rows_of_expert[first + i];
      const std::string expert = prefix + "expert" + std::to_string(first + i);
      Row out = x;
      for (int matrix = 1; matrix <= moe.hidden_size() + 1; ++matrix) {
        if (matrix > 1) {
          for (double& value : out) value = std::max(value, 0.0);
        }
        out = Product(out, Named(expert + ".w" + std::to_string(matrix)));
      }
      for (size_t c = 0; c < y.size(); ++c) y[c] += gate * out[c];
    }
  }

  const v1::Job& job_;
  const NamedValues& parameters_;
  const uint64_t step_;
  const bool training_;
  const uint32_t replica_;
  const uint32_t wave_;
  const size_t lanes_;
  const int64_t d_;
  std::vector<int32_t> target_;
  double threshold_loss_ = 0;
};

}  // namespace

CarriedState ReferenceModel::ZeroState() const {
  const v1::Training& training = job_.training();
  const v1::Model& model = job_.model();
  std::vector<std::vector<LaneState>> wave(model.layers_size());
  for (int l = 0; l < model.layers_size(); ++l) {
    const v1::Layer& layer = model.layers(l);
    if (layer.has_moe()) continue;
    // The output has the model's width.
    const Row c(layer.has_lstm() ? layer.lstm().hidden() : layer.recurrent_moe().hidden(),
                0.0),
        r(model.d_model(), 0.0);
    wave[l].assign(training.lanes() / training.waves(), {c, r});
  }
  return CarriedState(training.replicas(), {static_cast<size_t>(training.waves()), wave});
}

ReferenceModel::Result ReferenceModel::Forward(
    const NamedValues& parameters, const std::vector<std::vector<MicroBatch>>& batches,
    const CarriedState& state, uint64_t step, bool training) const {
  const v1::Model& model = job_.model();
  Result result;
  result.state = state;
  Totals totals;
  for (int l = 0; l < model.layers_size(); ++l) {
    const v1::Layer& layer = model.layers(l);
    const std::string name = LayerName(l);
    if (layer.has_moe()) totals.emplace(name + ".moe.", MixtureTotals(layer.moe()));
    if (!layer.has_recurrent_moe()) continue;
    const v1::RecurrentMoe& recurrent = layer.recurrent_moe();
    totals.emplace(name + ".recurrent_moe.input.", MixtureTotals(recurrent.input()));
    totals.emplace(name + ".recurrent_moe.recurrent.",
                   MixtureTotals(recurrent.recurrent()));
  }
  int64_t tokens = 0;
  for (size_t r = 0; r < batches.size(); ++r) {
    for (size_t w = 0; w < batches[r].size(); ++w) {
      MicroBatchPass pass(job_, parameters, step, training, r, w);
      result.loss_sum += pass.Run(batches[r][w], result.state[r][w], totals);
      result.threshold_loss += pass.threshold_loss();
      for (int32_t target : batches[r][w].target) tokens += target >= 0;
    }
  }
  for (const auto& [prefix, of_mixture] : totals) {
    result.rows_of_expert[prefix] = of_mixture.rows_of_expert;
    result.balance_loss +=
        double{of_mixture.moe.w_importance()} * CvSquared(of_mixture.importance) +
        double{of_mixture.moe.w_load()} * CvSquared(of_mixture.Load());
  }
  result.loss = result.loss_sum / tokens + result.balance_loss;
  result.threshold_loss /= tokens;
  return result;
}

NamedValues ReferenceModel::Gradients(const NamedValues& parameters,
                                      const std::vector<std::vector<MicroBatch>>& batches,
                                      const CarriedState& state, uint64_t step) const {
  // Truncation about 1e-10, rounding about 1e-11: far below what single precision can
  // show.
  constexpr double kStep = 1e-5;
  NamedValues moved = parameters;
  NamedValues gradients;
  for (auto& [name, values] : moved) {
    const bool threshold = name.ends_with(".threshold");
    const auto loss = [&] {
      const Result result = Forward(moved, batches, state, step, /*training=*/true);
      return threshold ? result.threshold_loss : result.loss;
    };
    for (double& value : values) {
      const double original = value;
      value = original + kStep;
      const double above = loss();
      value = original - kStep;
      const double below = loss();
      value = original;
      gradients[name].push_back((above - below) / (2 * kStep));
    }
  }
  return gradients;
}

void AdamUpdate(const AdamValues& adam, const NamedValues& gradients,
                NamedValues* parameters, NamedValues* m, NamedValues* v) {
  for (const auto& [name, gradient] : gradients) {
    for (size_t i = 0; i < gradient.size(); ++i) {
      double& first = m->at(name)[i];
      double& second = v->at(name)[i];
      first = adam.beta1 * first + (1 - adam.beta1) * gradient[i];
      second = adam.beta2 * second + (1 - adam.beta2) * gradient[i] * gradient[i];
      const double first_hat = first / (1 - std::pow(adam.beta1, adam.count));
      const double second_hat = second / (1 - std::pow(adam.beta2, adam.count));
      parameters->at(name)[i] -=
          adam.rate * first_hat / (std::sqrt(second_hat) + adam.epsilon);
    }
  }
}

}  // namespace moe::reference
