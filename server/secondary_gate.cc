#include "server/secondary_gate.h"

#include <utility>

#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {

SecondaryGate::SecondaryGate(Backend& backend, const v1::Job& job, const ShardSpec& spec,
                             ParameterBlock& parameters)
    : backend_(backend),
      seed_(job.seed()),
      moe_(job.model().layers(spec.layer).moe()),
      spec_(spec),
      waves_of_step_(job.training().waves()),
      parameters_(parameters),
      width_(job.model().d_model()),
      experts_(spec.experts),
      k_(moe_.k()) {
  CHECK_EQ(spec.gate_tensors, 2);
  CHECK_LE(k_, experts_);
}

// ---------------------------------------------------------------- forward

std::vector<GroupPairs> SecondaryGate::Forward(v1::Mode mode, uint64_t step,
                                               uint32_t wave, const WaveRows& rows,
                                               std::span<const GroupRows* const> chosen) {
  Wave w;
  w.begin.push_back(0);
  for (size_t r = 0; r < chosen.size(); ++r) {
    for (int32_t row : chosen[r]->row) {
      w.row.push_back(static_cast<int32_t>(rows.begin[r] + row));
    }
    w.primary.insert(w.primary.end(), chosen[r]->gate.begin(), chosen[r]->gate.end());
    w.begin.push_back(w.rows());
  }
  const std::vector<std::vector<double>> load = Choose(mode, step, wave, rows, &w);

  std::vector<GroupPairs> pairs(chosen.size());
  for (size_t r = 0; r < chosen.size(); ++r) {
    for (int64_t i = w.begin[r]; i < w.begin[r + 1]; ++i) {
      for (int64_t c = i * k_; c < (i + 1) * k_; ++c) {
        pairs[r].row.push_back(chosen[r]->row[i - w.begin[r]]);
        pairs[r].expert.push_back(w.chosen[c]);
        pairs[r].gate.push_back(w.primary[i] * w.secondary[c]);
      }
    }
  }
  if (mode != v1::MODE_TRAIN) return pairs;
  CHECK_EQ(wave, waves_.size());
  AddTotals(wave, chosen, pairs, load);
  waves_.push_back(std::move(w));
  return pairs;
}

GateBatch SecondaryGate::Batch(const Wave& wave, int64_t begin, int64_t rows) const {
  GateBatch batch;
  batch.clean = wave.clean.Rows(begin, rows);
  batch.with_noise = wave.raw.rows() > 0;
  if (batch.with_noise) {
    batch.raw = wave.raw.Rows(begin, rows);
    batch.noise = wave.noise.Rows(begin, rows);
  }
  batch.k = static_cast<int32_t>(k_);
  batch.expert = wave.expert.data() + begin * k_;
  batch.gate = wave.gate.data() + begin * k_;
  batch.threshold = wave.threshold.data() + begin * 2;
  return batch;
}

std::vector<std::vector<double>> SecondaryGate::Choose(v1::Mode mode, uint64_t step,
                                                       uint32_t wave,
                                                       const WaveRows& rows,
                                                       Wave* w) const {
  const size_t replicas = w->begin.size() - 1;
  std::vector<std::vector<double>> load(replicas, std::vector<double>(experts_));
  const int64_t q = w->rows();
  if (q == 0) return load;
  w->clean = Tensor(backend_, q, experts_);
  w->expert = Array<int32_t>(backend_, q * k_);
  w->gate = Array<float>(backend_, q * k_);
  w->threshold = Array<int32_t>(backend_, q * 2);
  Tensor x(backend_, q, width_);
  backend_.GatherRows(rows.x.view(), w->row, nullptr, x.view());
  backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x.view(), wg(), 0, w->clean.view());
  if (mode == v1::MODE_TRAIN) {
    w->raw = Tensor(backend_, q, experts_);
    w->noise = Tensor(backend_, q, experts_);
    backend_.Gemm(Transpose::kNo, Transpose::kNo, 1, x.view(), wnoise(), 0,
                  w->raw.view());
  }

  // Each replica has noise of its own.
  std::vector<int32_t> token;
  for (int32_t row : w->row) token.push_back(rows.token[row]);
  Array<double> importance(backend_, experts_);
  Array<double> sum(backend_, experts_);
  for (size_t r = 0; r < replicas; ++r) {
    const int64_t begin = w->begin[r];
    const int64_t count = w->begin[r + 1] - begin;
    if (count == 0) continue;
    GateBatch batch = Batch(*w, begin, count);
    batch.key = MakeKey(seed_, Purpose::kSecondaryGateNoise,
                        {.layer = LayerId(spec_.layer),
                         .step = step,
                         .wave = wave,
                         .replica = static_cast<uint32_t>(r),
                         .group = static_cast<uint32_t>(spec_.group)});
    batch.draw_row = std::span(token).subspan(begin, count);
    batch.importance = importance.data();
    batch.load = sum.data();
    backend_.NoisyTopKForward(batch);
    sum.Download(load[r]);
  }
  w->chosen.resize(q * k_);
  w->secondary.resize(q * k_);
  w->expert.Download(w->chosen);
  w->gate.Download(w->secondary);
  return load;
}

void SecondaryGate::AddTotals(uint32_t wave, std::span<const GroupRows* const> chosen,
                              std::span<const GroupPairs> pairs,
                              std::span<const std::vector<double>> load) {
  if (wave == 0) {
    totals_ = {};
    totals_.importance.assign(experts_, 0);
    totals_.load.assign(experts_, 0);
  }
  // Of the wave, by replica; then it joins the waves before.
  double load_primary = 0;
  std::vector<double> importance(experts_);
  std::vector<double> load_of_wave(experts_);
  for (size_t r = 0; r < chosen.size(); ++r) {
    totals_.rows += static_cast<int64_t>(chosen[r]->row.size());
    load_primary += chosen[r]->load;
    std::vector<double> of_replica(experts_);
    for (size_t p = 0; p < pairs[r].expert.size(); ++p) {
      of_replica[pairs[r].expert[p]] += pairs[r].gate[p];
    }
    for (int64_t j = 0; j < experts_; ++j) {
      importance[j] += of_replica[j];
      load_of_wave[j] += load[r][j];
    }
  }
  totals_.load_primary += load_primary;
  for (int64_t j = 0; j < experts_; ++j) {
    totals_.importance[j] += importance[j];
    totals_.load[j] += load_of_wave[j];
  }
}

// ---------------------------------------------------------------- balance

Spread SecondaryGate::ImportanceSpread() const { return SpreadOf(totals_.importance); }

Spread SecondaryGate::LoadSpread() const { return SpreadOf(LoadH()); }

std::vector<double> SecondaryGate::LoadH() const {
  std::vector<double> load(experts_);
  if (totals_.rows == 0) return load;
  const double share = totals_.load_primary / static_cast<double>(totals_.rows);
  for (int64_t j = 0; j < experts_; ++j) load[j] = share * totals_.load[j];
  return load;
}

std::vector<double> SecondaryGate::LoadGradient(const BalanceMoments& moments) const {
  std::vector<double> gradient = LoadH();
  for (double& value : gradient) {
    value = CvSquaredGradient(moments.load, moe_.experts(), moe_.w_load(), value);
  }
  return gradient;
}

double SecondaryGate::LoadPrimaryGradient(const BalanceMoments& moments) const {
  if (totals_.rows == 0) return 0;
  const std::vector<double> dload = LoadGradient(moments);
  double sum = 0;
  for (int64_t j = 0; j < experts_; ++j) sum += dload[j] * totals_.load[j];
  return sum / static_cast<double>(totals_.rows);
}

// ---------------------------------------------------------------- backward

std::vector<float> SecondaryGate::Backward(uint32_t wave, const BalanceMoments& moments,
                                           std::span<const float> dgate, Matrix dx) {
  CHECK_EQ(waves_.size(), waves_of_step_);
  Wave& w = waves_.at(wave);
  const int64_t q = w.rows();
  CHECK_EQ(static_cast<int64_t>(dgate.size()), q * k_);
  std::vector<float> dprimary(q);
  if (q == 0) return dprimary;

  // Importance_H is the sum of the products, so its gradient is the same for each of an
  // expert's.
  std::vector<double> dimportance = totals_.importance;
  for (double& value : dimportance) {
    value =
        CvSquaredGradient(moments.importance, moe_.experts(), moe_.w_importance(), value);
  }
  std::vector<float> dsecondary(q * k_);
  for (int64_t i = 0; i < q; ++i) {
    double sum = 0;
    for (int64_t c = i * k_; c < (i + 1) * k_; ++c) {
      const double dproduct = dgate[c] + dimportance[w.chosen[c]];
      dsecondary[c] = static_cast<float>(w.primary[i] * dproduct);
      sum += w.secondary[c] * dproduct;
    }
    dprimary[i] = static_cast<float>(sum);
  }

  const double share = totals_.load_primary / static_cast<double>(totals_.rows);
  std::vector<float> host_dload;
  for (double value : LoadGradient(moments)) {
    host_dload.push_back(static_cast<float>(share * value));
  }
  Array<float> device_dgate(backend_, q * k_);
  Array<float> dload(backend_, experts_);
  device_dgate.Upload(dsecondary);
  dload.Upload(host_dload);
  w.dclean = Tensor(backend_, q, experts_);
  w.draw = Tensor(backend_, q, experts_);
  backend_.NoisyTopKBackward(Batch(w, 0, q), device_dgate.data(), dload.data(),
                             w.dclean.view(), w.draw.view());
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, w.dclean.view(), wg(), 1, dx);
  backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, w.draw.view(), wnoise(), 1, dx);

  w.clean = Tensor();
  w.raw = Tensor();
  w.noise = Tensor();
  w.expert = Array<int32_t>();
  w.gate = Array<float>();
  w.threshold = Array<int32_t>();
  return dprimary;
}

// ---------------------------------------------------------------- the end of a step

const std::vector<Tensor>& SecondaryGate::Gradients(std::span<const WaveRows> waves) {
  if (totals_.rows == 0 || !gradients_.empty()) return gradients_;
  CHECK_EQ(waves.size(), waves_.size());
  Tensor x(backend_, totals_.rows, width_);
  Tensor dclean(backend_, totals_.rows, experts_);
  Tensor draw(backend_, totals_.rows, experts_);
  int64_t to = 0;
  for (size_t i = 0; i < waves.size(); ++i) {
    const Wave& w = waves_[i];
    if (w.rows() == 0) continue;
    const int64_t bytes = w.dclean.size() * static_cast<int64_t>(sizeof(float));
    backend_.GatherRows(waves[i].x.view(), w.row, nullptr, x.Rows(to, w.rows()));
    backend_.Copy(w.dclean.data(), dclean.view().row(to), bytes);
    backend_.Copy(w.draw.data(), draw.view().row(to), bytes);
    to += w.rows();
  }
  for (const Tensor* dlogits : {&dclean, &draw}) {
    backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, x.view(), dlogits->view(), 0,
                  gradients_.emplace_back(backend_, width_, experts_).view());
  }
  return gradients_;
}

void SecondaryGate::AppendSquareSums(std::span<const WaveRows> waves,
                                     std::vector<v1::TensorSquareSum>* sums) {
  const std::vector<Tensor>& gradients = Gradients(waves);
  for (size_t i = 0; i < gradients.size(); ++i) {
    v1::TensorSquareSum& sum = sums->emplace_back();
    sum.set_tensor(spec_.tensors[i]);
    sum.set_sum(backend_.SquareSum(gradients[i].size(), gradients[i].data()));
  }
}

void SecondaryGate::Apply(std::span<const WaveRows> waves, double rate, double scale) {
  const std::vector<Tensor>& gradients = Gradients(waves);
  for (int i = 0; i < static_cast<int>(gradients.size()); ++i) {
    backend_.OptimizerUpdate(parameters_.NextUpdate(i, rate, scale), gradients[i].view(),
                             parameters_.w(i), parameters_.m(i), parameters_.v(i));
  }
  gradients_.clear();
  waves_.clear();
  totals_ = {};
}

}  // namespace moe
