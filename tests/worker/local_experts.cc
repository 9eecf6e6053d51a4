#include "tests/worker/local_experts.h"

#include <algorithm>

#include "glog/logging.h"

namespace moe::testing {
namespace {

// Row `from` of the rows of `width` in source, to the end of *to.
void AppendRow(std::span<const float> source, int64_t from, int64_t width,
               std::vector<float>* to) {
  const auto row = source.subspan(from * width, width);
  to->insert(to->end(), row.begin(), row.end());
}

std::vector<float> Download(const Tensor& tensor) {
  std::vector<float> values(tensor.size());
  if (!values.empty()) tensor.Download(values);
  return values;
}

}  // namespace

LocalExperts::LocalExperts(Backend& backend, const v1::Job& job, int32_t layer)
    : backend_(backend),
      d_(job.model().d_model()),
      h_(job.model().layers(layer).moe().hidden(0)),
      waves_(job.training().waves()) {
  for (int32_t e = 0; e < job.model().layers(layer).moe().experts(); ++e) {
    experts_.push_back({Tensor(backend, d_, h_), Tensor(backend, h_, d_)});
  }
}

void LocalExperts::BeginStep() {
  importance_.assign(experts_.size(), 0);
  load_.assign(experts_.size(), 0);
}

Tensor LocalExperts::Upload(const std::vector<float>& values, int64_t cols) const {
  Tensor tensor(backend_, static_cast<int64_t>(values.size()) / cols, cols);
  if (!values.empty()) tensor.Upload(values);
  return tensor;
}

std::vector<ExpertRows> LocalExperts::RowsOf(const Wave& wave) const {
  std::vector<ExpertRows> rows;
  for (size_t e = 0; e < experts_.size(); ++e) {
    rows.push_back({experts_[e].w1.data(), experts_[e].w2.data(), wave.begin[e],
                    wave.begin[e + 1] - wave.begin[e]});
  }
  return rows;
}

std::vector<std::vector<float>> LocalExperts::Forward(
    int32_t wave, std::span<const MoeCall* const> calls) {
  Wave& w = waves_[wave];
  w = Wave();
  for (int32_t e = 0; e < experts(); ++e) {
    w.begin.push_back(static_cast<int64_t>(w.pairs.size()));
    for (size_t r = 0; r < calls.size(); ++r) {
      const MoeCall& call = *calls[r];
      for (size_t token = 0; token + 1 < call.offset.size(); ++token) {
        for (int32_t c = call.offset[token]; c < call.offset[token + 1]; ++c) {
          if (call.expert[c] != e) continue;
          w.pairs.push_back({static_cast<int32_t>(r), static_cast<int32_t>(token), c});
          AppendRow(call.x, static_cast<int64_t>(token), d_, &w.x);
          w.gate.push_back(call.gate[c]);
        }
      }
    }
  }
  w.begin.push_back(static_cast<int64_t>(w.pairs.size()));
  std::vector<std::vector<float>> result;
  for (const MoeCall* call : calls) {
    for (size_t e = 0; e < experts_.size(); ++e) {
      importance_[e] += call->importance[e];
      load_[e] += call->load[e];
    }
    w.tokens.push_back(static_cast<int32_t>(call->offset.size()) - 1);
    w.choices.push_back(call->expert.size());
    result.emplace_back(w.tokens.back() * d_);
  }

  const Tensor x = Upload(w.x, d_);
  Tensor hidden(backend_, x.rows(), h_);
  Tensor y(backend_, x.rows(), d_);
  backend_.ExpertForward(RowsOf(w), x.view(), hidden.view(), y.view());
  w.hidden = Download(hidden);
  const std::vector<float> rows = Download(y);
  for (size_t p = 0; p < w.pairs.size(); ++p) {
    float* to = result[w.pairs[p].replica].data() + w.pairs[p].token * d_;
    for (int64_t c = 0; c < d_; ++c) to[c] += w.gate[p] * rows[p * d_ + c];
  }
  return result;
}

LocalExperts::Gradients LocalExperts::Backward(
    int32_t wave, std::span<const std::span<const float>> dy) {
  Wave& w = waves_[wave];
  std::vector<float> rows;
  for (const Pair& pair : w.pairs) AppendRow(dy[pair.replica], pair.token, d_, &rows);
  w.gated_dy = rows;
  for (size_t i = 0; i < rows.size(); ++i) w.gated_dy[i] *= w.gate[i / d_];

  const Tensor device_dy = Upload(rows, d_);
  const Tensor gate = Upload(w.gate, 1);
  const Tensor hidden = Upload(w.hidden, h_);
  Tensor dgate(backend_, gate.rows(), 1);
  Tensor dhidden(backend_, hidden.rows(), h_);
  Tensor dx(backend_, device_dy.rows(), d_);
  backend_.ExpertBackward(RowsOf(w), device_dy.view(), gate.data(), hidden.view(),
                          dgate.data(), dhidden.view(), dx.view());
  w.dhidden = Download(dhidden);

  Gradients result;
  for (int32_t tokens : w.tokens) result.dx.emplace_back(tokens * d_);
  for (size_t choices : w.choices) result.dgate.emplace_back(choices);
  const std::vector<float> dx_rows = Download(dx);
  const std::vector<float> dgates = Download(dgate);
  for (size_t p = 0; p < w.pairs.size(); ++p) {
    const Pair& pair = w.pairs[p];
    result.dgate[pair.replica][pair.choice] = dgates[p];
    float* to = result.dx[pair.replica].data() + pair.token * d_;
    for (int64_t c = 0; c < d_; ++c) to[c] += dx_rows[p * d_ + c];
  }
  return result;
}

int64_t LocalExperts::rows(int32_t expert) const {
  int64_t rows = 0;
  for (const Wave& wave : waves_) rows += wave.begin[expert + 1] - wave.begin[expert];
  return rows;
}

LocalExperts::Batch LocalExperts::Close() const {
  Batch batch;
  std::vector<float> x, hidden, dhidden, gated_dy;
  int64_t begin = 0;
  for (int32_t e = 0; e < experts(); ++e) {
    for (const Wave& wave : waves_) {
      for (int64_t p = wave.begin[e]; p < wave.begin[e + 1]; ++p) {
        AppendRow(wave.x, p, d_, &x);
        AppendRow(wave.hidden, p, h_, &hidden);
        AppendRow(wave.dhidden, p, h_, &dhidden);
        AppendRow(wave.gated_dy, p, d_, &gated_dy);
      }
    }
    batch.experts.push_back(
        {experts_[e].w1.data(), experts_[e].w2.data(), begin, rows(e)});
    begin += rows(e);
  }
  batch.x = Upload(x, d_);
  batch.hidden = Upload(hidden, h_);
  batch.dhidden = Upload(dhidden, h_);
  batch.gated_dy = Upload(gated_dy, d_);
  return batch;
}

LocalExperts::ExpertGradient LocalExperts::WeightGradients(int32_t expert) const {
  const Batch batch = Close();
  const ExpertRows& rows = batch.experts[expert];
  ExpertGradient gradient{Tensor(backend_, d_, h_), Tensor(backend_, h_, d_)};
  gradient.dw1.Zero();
  gradient.dw2.Zero();
  if (rows.rows == 0) return gradient;
  const auto of = [&](const Tensor& tensor) {
    return tensor.Rows(rows.begin, rows.rows);
  };
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, of(batch.x), of(batch.dhidden), 0,
                gradient.dw1.view());
  backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, of(batch.hidden), of(batch.gated_dy),
                0, gradient.dw2.view());
  return gradient;
}

void LocalExperts::Update(const OptimizerStep& step, std::span<const Moments> moments) {
  const Batch batch = Close();
  std::vector<ExpertUpdate> updates;
  for (size_t e = 0; e < experts_.size(); ++e) {
    updates.push_back({.expert = batch.experts[e],
                       .m1 = moments[e].m1.data(),
                       .v1 = moments[e].v1.data(),
                       .m2 = moments[e].m2.data(),
                       .v2 = moments[e].v2.data(),
                       .step = step});
  }
  backend_.ExpertUpdates(updates, batch.x.view(), batch.hidden.view(),
                         batch.dhidden.view(), batch.gated_dy.view());
}

}  // namespace moe::testing
