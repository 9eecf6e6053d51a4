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

LocalExperts::LocalExperts(Backend& backend, const v1::Job& job, const Mixture& mixture)
    : backend_(backend),
      in_(mixture.in),
      out_(mixture.out),
      hidden_(mixture.moe.hidden().begin(), mixture.moe.hidden().end()),
      waves_(job.training().waves() * mixture.calls) {
  for (int32_t e = 0; e < mixture.moe.experts(); ++e) {
    int64_t in = in_;
    std::vector<Tensor>& weights = weights_.emplace_back();
    std::vector<float*>& pointers = pointers_.emplace_back();
    for (size_t i = 0; i <= hidden_.size(); ++i) {
      const int64_t out = i < hidden_.size() ? hidden_[i] : out_;
      pointers.push_back(weights.emplace_back(backend, in, out).data());
      in = out;
    }
  }
}

void LocalExperts::BeginStep() {
  importance_.assign(weights_.size(), 0);
  load_.assign(weights_.size(), 0);
}

Tensor LocalExperts::Upload(const std::vector<float>& values, int64_t cols) const {
  Tensor tensor(backend_, static_cast<int64_t>(values.size()) / cols, cols);
  if (!values.empty()) tensor.Upload(values);
  return tensor;
}

std::vector<Tensor> LocalExperts::HiddenTensors(int64_t rows) const {
  std::vector<Tensor> tensors;
  for (int64_t width : hidden_) tensors.emplace_back(backend_, rows, width);
  return tensors;
}

std::vector<Tensor> LocalExperts::UploadHidden(
    const std::vector<std::vector<float>>& values) const {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < hidden_.size(); ++i) {
    tensors.push_back(Upload(values[i], hidden_[i]));
  }
  return tensors;
}

ExpertRows LocalExperts::RowsOf(int32_t expert, int64_t begin, int64_t rows) const {
  return {pointers_[expert], begin, rows};
}

std::vector<ExpertRows> LocalExperts::RowsOf(const Wave& wave) const {
  std::vector<ExpertRows> rows;
  for (int32_t e = 0; e < experts(); ++e) {
    rows.push_back(RowsOf(e, wave.begin[e], wave.begin[e + 1] - wave.begin[e]));
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
          AppendRow(call.x, static_cast<int64_t>(token), in_, &w.x);
          w.gate.push_back(call.gate[c]);
        }
      }
    }
  }
  w.begin.push_back(static_cast<int64_t>(w.pairs.size()));
  std::vector<std::vector<float>> result;
  for (const MoeCall* call : calls) {
    for (size_t e = 0; e < weights_.size(); ++e) {
      importance_[e] += call->importance[e];
      load_[e] += call->load[e];
    }
    w.tokens.push_back(static_cast<int32_t>(call->offset.size()) - 1);
    w.choices.push_back(call->expert.size());
    result.emplace_back(w.tokens.back() * out_);
  }

  const Tensor x = Upload(w.x, in_);
  const std::vector<Tensor> hidden = HiddenTensors(x.rows());
  Tensor y(backend_, x.rows(), out_);
  backend_.ExpertForward(RowsOf(w), x.view(), Views<Matrix>(hidden), y.view());
  for (const Tensor& layer : hidden) w.hidden.push_back(Download(layer));
  const std::vector<float> rows = Download(y);
  for (size_t p = 0; p < w.pairs.size(); ++p) {
    float* to = result[w.pairs[p].replica].data() + w.pairs[p].token * out_;
    for (int64_t c = 0; c < out_; ++c) to[c] += w.gate[p] * rows[p * out_ + c];
  }
  return result;
}

LocalExperts::Gradients LocalExperts::Backward(
    int32_t wave, std::span<const std::span<const float>> dy) {
  Wave& w = waves_[wave];
  std::vector<float> rows;
  for (const Pair& pair : w.pairs) AppendRow(dy[pair.replica], pair.token, out_, &rows);
  w.gated_dy = rows;
  for (size_t i = 0; i < rows.size(); ++i) w.gated_dy[i] *= w.gate[i / out_];

  const Tensor x = Upload(w.x, in_);
  const Tensor device_dy = Upload(rows, out_);
  const Tensor gate = Upload(w.gate, 1);
  const std::vector<Tensor> hidden = UploadHidden(w.hidden);
  const std::vector<Tensor> dhidden = HiddenTensors(device_dy.rows());
  Tensor dgate(backend_, gate.rows(), 1);
  Tensor dx(backend_, device_dy.rows(), in_);
  backend_.ExpertBackward(RowsOf(w), x.view(), device_dy.view(), gate.data(),
                          Views<ConstMatrix>(hidden), dgate.data(),
                          Views<Matrix>(dhidden), dx.view());
  for (const Tensor& layer : dhidden) w.dhidden.push_back(Download(layer));

  Gradients result;
  for (int32_t tokens : w.tokens) result.dx.emplace_back(tokens * in_);
  for (size_t choices : w.choices) result.dgate.emplace_back(choices);
  const std::vector<float> dx_rows = Download(dx);
  const std::vector<float> dgates = Download(dgate);
  for (size_t p = 0; p < w.pairs.size(); ++p) {
    const Pair& pair = w.pairs[p];
    result.dgate[pair.replica][pair.choice] = dgates[p];
    float* to = result.dx[pair.replica].data() + pair.token * in_;
    for (int64_t c = 0; c < in_; ++c) to[c] += dx_rows[p * in_ + c];
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
  std::vector<float> x, gated_dy;
  std::vector<std::vector<float>> hidden(hidden_.size()), dhidden(hidden_.size());
  int64_t begin = 0;
  for (int32_t e = 0; e < experts(); ++e) {
    for (const Wave& wave : waves_) {
      for (int64_t p = wave.begin[e]; p < wave.begin[e + 1]; ++p) {
        AppendRow(wave.x, p, in_, &x);
        for (size_t i = 0; i < hidden_.size(); ++i) {
          AppendRow(wave.hidden[i], p, hidden_[i], &hidden[i]);
          AppendRow(wave.dhidden[i], p, hidden_[i], &dhidden[i]);
        }
        AppendRow(wave.gated_dy, p, out_, &gated_dy);
      }
    }
    batch.experts.push_back(RowsOf(e, begin, rows(e)));
    begin += rows(e);
  }
  batch.x = Upload(x, in_);
  batch.hidden = UploadHidden(hidden);
  batch.dhidden = UploadHidden(dhidden);
  batch.gated_dy = Upload(gated_dy, out_);
  return batch;
}

std::vector<Tensor> LocalExperts::WeightGradients(int32_t expert) const {
  const Batch batch = Close();
  const ExpertRows& rows = batch.experts[expert];
  std::vector<Tensor> gradients;
  for (size_t i = 0; i <= hidden_.size(); ++i) {
    const Tensor& left = i == 0 ? batch.x : batch.hidden[i - 1];
    const Tensor& right = i < hidden_.size() ? batch.dhidden[i] : batch.gated_dy;
    Tensor& gradient = gradients.emplace_back(backend_, left.cols(), right.cols());
    gradient.Zero();
    if (rows.rows == 0) continue;
    backend_.Gemm(Transpose::kYes, Transpose::kNo, 1, left.Rows(rows.begin, rows.rows),
                  right.Rows(rows.begin, rows.rows), 0, gradient.view());
  }
  return gradients;
}

void LocalExperts::Update(const OptimizerStep& step, std::span<const Moments> moments) {
  const Batch batch = Close();
  const auto pointers = [](const std::vector<Tensor>& tensors) {
    std::vector<float*> data;
    for (const Tensor& tensor : tensors) data.push_back(tensor.data());
    return data;
  };
  std::vector<std::vector<float*>> m, v;
  for (const Moments& of_expert : moments) {
    m.push_back(pointers(of_expert.m));
    v.push_back(pointers(of_expert.v));
  }
  const std::vector<OptimizerStep> steps(hidden_.size() + 1, step);
  std::vector<ExpertUpdate> updates;
  for (int32_t e = 0; e < experts(); ++e) {
    updates.push_back({.expert = batch.experts[e], .m = m[e], .v = v[e], .steps = steps});
  }
  backend_.ExpertUpdates(updates, batch.x.view(), Views<ConstMatrix>(batch.hidden),
                         Views<ConstMatrix>(batch.dhidden), batch.gated_dy.view());
}

}  // namespace moe::testing
