#include "worker/models/replica_model.h"

#include <cstddef>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "worker/gating/gate.h"
#include "worker/layers/dropout.h"
#include "worker/layers/lstm.h"
#include "worker/layers/moe_output.h"
#include "worker/layers/parameter.h"
#include "worker/models/mixture_caller.h"
#include "worker/models/recurrent_moe.h"
#include "worker/models/word_layers.h"

namespace moe {
namespace {

// The worker's half of a MoE layer.
struct MoeLayer {
  MoeLayer(Backend& backend, const v1::Moe& moe, std::unique_ptr<Gate> gate,
           const GateCalls& calls, int64_t d)
      : mixture(backend, std::move(gate), calls, d),
        output(backend, moe.sigmoid_output(), calls.rows, d, calls.waves) {}

  MixtureCaller mixture;
  MoeOutput output;
};

struct LayerState {
  LayerState(Backend& backend, int32_t index, const v1::Layer& layer)
      : dropout(backend, LayerId(index), layer.dropout()), residual(layer.residual()) {}

  // What is carried from step to step; null if nothing is.
  Tensor* state(int32_t wave) const {
    if (lstm != nullptr) return &lstm->state(wave);
    return recurrent != nullptr ? &recurrent->state(wave) : nullptr;
  }
  const char* kind() const {
    if (lstm != nullptr) return "lstm";
    return moe != nullptr ? "moe" : "recurrent_moe";
  }

  // One of the three.
  std::unique_ptr<Lstm> lstm;
  std::unique_ptr<MoeLayer> moe;
  std::unique_ptr<RecurrentMoe> recurrent;
  Dropout dropout;
  bool residual;
  std::vector<Tensor> output;  // [waves] of [T, d]
};

std::vector<Tensor> ZeroTensors(Backend& backend, int32_t waves, int64_t rows,
                                int64_t cols) {
  std::vector<Tensor> tensors;
  for (int32_t w = 0; w < waves; ++w) tensors.emplace_back(backend, rows, cols).Zero();
  return tensors;
}

}  // namespace

class ReplicaModel::Impl {
 public:
  Impl(Backend& backend, const v1::Job& job, const ModelPlan& plan,
       const DenseParameters& parameters, uint32_t replica, int32_t lanes, int32_t waves,
       int32_t unroll);

  int segments() const { return static_cast<int>(exchanges_.size()) + 1; }
  const MoeExchange& exchange(int segment) const { return exchanges_.at(segment); }
  DenseParameters& gradients() { return gradients_; }
  double loss_sum(int32_t wave) const { return loss_sum_[wave]; }
  std::span<const float> softmax_input(int32_t wave) const {
    return softmax_input_[wave];
  }
  void SetLossSum(int32_t wave, double loss_sum) { loss_sum_[wave] = loss_sum; }
  const TableWordLayers& table_words() const {
    CHECK(table_words_ != nullptr);
    return *table_words_;
  }

  void ResetState();
  std::string SaveState() const;
  absl::Status LoadState(const std::string& state);

  void BeginStep(uint64_t step, PassMode mode, int64_t tokens_of_step,
                 const StepTables* tables);
  void Forward(int segment, int32_t wave, std::span<const int32_t> input,
               std::span<const int32_t> target);
  void SetMoeOutput(int segment, int32_t wave, std::span<const float> y);
  void Backward(int segment, int32_t wave);
  void SetMoeGradient(int segment, int32_t wave, std::span<const float> dx,
                      std::span<const float> dgate, std::span<const double> dimportance,
                      std::span<const double> dload);
  std::vector<int> recomputed(int segment) const;
  void Recompute(int segment, int32_t wave, size_t i, std::span<const float> y);
  const MoeCall& moe_call(int segment, int32_t wave) const {
    const MoeExchange& at = exchange(segment);
    const LayerState& layer = layers_[at.id.layer];
    const MixtureCaller& mixture = layer.moe != nullptr ? layer.moe->mixture
                                   : IsStep(at)         ? layer.recurrent->recurrent()
                                                        : layer.recurrent->input();
    return mixture.call({wave, at.call});
  }
  std::span<const float> moe_output_gradient() const { return moe_output_gradient_; }
  std::string FirstNonFinite(int32_t wave) const;

 private:
  // Parameters and gradients of the tensor `name`.
  Parameter Named(const DenseParameters& parameters, const std::string& name) const {
    return {parameters.tensor(name), gradients_.tensor(name)};
  }
  // Whether the exchange is that of a time step of a recurrent MoE.
  static bool IsStep(const MoeExchange& at) { return at.id.mixture == kRecurrentMixture; }
  // Whether the segment lies within a recurrent MoE.
  bool Within(int segment) const {
    return segment < segments() - 1 && IsStep(exchange(segment));
  }
  // The layers that a segment computes whole: [first, last).
  std::pair<int32_t, int32_t> WholeLayers(int segment) const;
  // Layer l's input, [T, d]; that of layer layers_.size() is the softmax's.
  ConstMatrix Input(int32_t layer, int32_t wave) const {
    return layer == 0 ? embedded_[wave].view() : layers_[layer - 1].output[wave].view();
  }
  // Dropout and residual: from the layer's own output to output[wave].
  void FinishLayer(int32_t layer, int32_t wave, ConstMatrix y);
  // Of the layer whose exchange is the segment's last.
  void ForwardGate(int segment, int32_t wave);
  size_t StateBytes() const;

  Backend& backend_;
  const int64_t d_;
  const int32_t waves_;
  const int64_t rows_;  // T, of one wave
  DenseParameters gradients_;
  std::unique_ptr<WordLayers> words_;
  // The same; null without tables.
  TableWordLayers* table_words_ = nullptr;
  std::vector<LayerState> layers_;
  std::vector<MoeExchange> exchanges_;  // by the segment before each

  Pass pass_;
  float gradient_scale_ = 0;
  std::vector<std::vector<int32_t>> target_;  // [waves][T]
  std::vector<Tensor> embedded_;              // [waves] of [T, d]
  std::vector<double> loss_sum_;              // [waves]
  // [waves][T, d] host copies; with tables and in evaluation only.
  std::vector<std::vector<float>> softmax_input_;
  // [waves] of [T, d]: dL/d of the activation that the wave's backward has come to.
  std::vector<Tensor> gradient_;
  Tensor scratch_;  // [T, d]
  std::span<const float> moe_output_gradient_;
};

ReplicaModel::Impl::Impl(Backend& backend, const v1::Job& job, const ModelPlan& plan,
                         const DenseParameters& parameters, uint32_t replica,
                         int32_t lanes, int32_t waves, int32_t unroll)
    : backend_(backend),
      d_(job.model().d_model()),
      waves_(waves),
      rows_(int64_t{lanes} / waves * unroll),
      gradients_(backend, plan),
      target_(waves, std::vector<int32_t>(rows_)),
      embedded_(ZeroTensors(backend, waves, rows_, d_)),
      loss_sum_(waves),
      softmax_input_(waves),
      gradient_(ZeroTensors(backend, waves, rows_, d_)),
      scratch_(backend, rows_, d_) {
  CHECK_EQ(lanes % waves, 0);
  pass_.seed = job.seed();
  pass_.replica = replica;
  const v1::Model& model = job.model();
  if (model.has_tables()) {
    auto words =
        std::make_unique<TableWordLayers>(backend, d_, model.embedding_dropout(), waves);
    table_words_ = words.get();
    words_ = std::move(words);
  } else {
    words_ = std::make_unique<DenseWordLayers>(
        backend, Named(parameters, "embedding"), Named(parameters, "softmax.w"),
        Named(parameters, "softmax.b"), model.embedding_dropout(), rows_, waves);
  }
  for (int32_t l = 0; l < model.layers_size(); ++l) {
    const v1::Layer& layer = model.layers(l);
    LayerState& state = layers_.emplace_back(backend, l, layer);
    state.output = ZeroTensors(backend, waves, rows_, d_);
    if (layer.has_lstm()) {
      const v1::Lstm& lstm = layer.lstm();
      CHECK_EQ(lstm.projection() > 0 ? lstm.projection() : lstm.hidden(), d_)
          << "layer " << l;
      const std::string prefix = absl::StrCat("layer", l, ".lstm.");
      state.lstm = std::make_unique<Lstm>(
          backend,
          Lstm::Parameters{.wx = Named(parameters, prefix + "wx"),
                           .wh = Named(parameters, prefix + "wh"),
                           .b = Named(parameters, prefix + "b"),
                           .wp = lstm.projection() > 0 ? Named(parameters, prefix + "wp")
                                                       : Parameter()},
          lanes / waves, unroll, waves);
    } else if (layer.has_moe()) {
      const auto named = [&](const std::string& name) {
        return Named(parameters, absl::StrCat("layer", l, ".moe.", name));
      };
      const GateCalls calls = {.rows = rows_, .waves = waves};
      state.moe = std::make_unique<MoeLayer>(
          backend, layer.moe(), MakeGate(backend, LayerId(l), layer.moe(), named, calls),
          calls, d_);
    } else {
      CHECK(layer.has_recurrent_moe()) << "layer " << l;
      const auto named = [&](const std::string& name) {
        return Named(parameters, absl::StrCat("layer", l, ".recurrent_moe.", name));
      };
      state.recurrent =
          std::make_unique<RecurrentMoe>(backend, LayerId(l), layer.recurrent_moe(),
                                         named, lanes / waves, unroll, waves);
    }
  }
  const std::vector<Mixture> mixtures = MixturesOf(job);
  for (size_t m = 0; m < mixtures.size(); ++m) {
    for (int32_t call = 0; call < mixtures[m].calls; ++call) {
      exchanges_.push_back(
          {.mixture = static_cast<int32_t>(m), .id = mixtures[m].id, .call = call});
    }
  }
}

std::pair<int32_t, int32_t> ReplicaModel::Impl::WholeLayers(int segment) const {
  CHECK(segment >= 0 && segment < segments()) << segment;
  if (Within(segment)) return {0, 0};
  const uint32_t first = segment == 0 ? 0 : exchange(segment - 1).id.layer + 1;
  const uint32_t last = segment < segments() - 1 ? exchange(segment).id.layer
                                                 : static_cast<uint32_t>(layers_.size());
  return {first, last};
}

size_t ReplicaModel::Impl::StateBytes() const {
  size_t bytes = 0;
  for (const LayerState& layer : layers_) {
    const Tensor* state = layer.state(0);
    if (state != nullptr) bytes += waves_ * state->size() * sizeof(float);
  }
  return bytes;
}

void ReplicaModel::Impl::ResetState() {
  for (LayerState& layer : layers_) {
    if (layer.state(0) == nullptr) continue;
    for (int32_t w = 0; w < waves_; ++w) layer.state(w)->Zero();
  }
}

// The state's bytes: for each LSTM and recurrent MoE, for each wave, c [lanes of the wave, H], then
// r [lanes of the wave, R] (lstm.h); floats.
std::string ReplicaModel::Impl::SaveState() const {
  std::string state(StateBytes(), '\0');
  char* at = state.data();
  for (const LayerState& layer : layers_) {
    if (layer.state(0) == nullptr) continue;
    for (int32_t w = 0; w < waves_; ++w) {
      const Tensor& tensor = *layer.state(w);
      backend_.Download(tensor.data(), at, tensor.size() * sizeof(float));
      at += tensor.size() * sizeof(float);
    }
  }
  return state;
}

absl::Status ReplicaModel::Impl::LoadState(const std::string& state) {
  if (state.size() != StateBytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("replica ", pass_.replica, ": the carried state has ", state.size(),
                     " bytes; this model's has ", StateBytes()));
  }
  const char* at = state.data();
  for (LayerState& layer : layers_) {
    if (layer.state(0) == nullptr) continue;
    for (int32_t w = 0; w < waves_; ++w) {
      const Tensor& tensor = *layer.state(w);
      backend_.Upload(at, tensor.data(), tensor.size() * sizeof(float));
      at += tensor.size() * sizeof(float);
    }
  }
  return absl::OkStatus();
}

void ReplicaModel::Impl::BeginStep(uint64_t step, PassMode mode, int64_t tokens_of_step,
                                   const StepTables* tables) {
  pass_.step = step;
  pass_.mode = mode;
  pass_.tokens = tokens_of_step;
  words_->BeginStep(pass_, tables);
  if (mode == PassMode::kEvaluate) return;
  CHECK_GT(tokens_of_step, 0);
  gradient_scale_ = static_cast<float>(1.0 / static_cast<double>(tokens_of_step));
  gradients_.Zero();
}

void ReplicaModel::Impl::Forward(int segment, int32_t wave,
                                 std::span<const int32_t> input,
                                 std::span<const int32_t> target) {
  if (segment == 0) {
    CHECK_EQ(static_cast<int64_t>(input.size()), rows_);
    CHECK_EQ(static_cast<int64_t>(target.size()), rows_);
    target_[wave].assign(target.begin(), target.end());
    words_->Embed(pass_, wave, input, embedded_[wave].view());
  } else if (!Within(segment)) {
    const uint32_t layer = exchange(segment - 1).id.layer;
    const LayerState& state = layers_[layer];
    FinishLayer(static_cast<int32_t>(layer), wave,
                state.moe != nullptr ? state.moe->output.output(wave)
                                     : state.recurrent->output(wave));
  }

  const auto [first, last] = WholeLayers(segment);
  for (int32_t l = first; l < last; ++l) {
    Lstm& lstm = *layers_[l].lstm;
    lstm.Forward(wave, Input(l, wave));
    FinishLayer(l, wave, lstm.output(wave));
  }

  if (segment < segments() - 1) {
    ForwardGate(segment, wave);
  } else if (pass_.training()) {
    loss_sum_[wave] = words_->Train(Input(last, wave), target_[wave], gradient_scale_,
                                    gradient_[wave].view());
  } else if (table_words_ == nullptr) {
    loss_sum_[wave] = words_->Evaluate(Input(last, wave), target_[wave]);
  } else {
    const ConstMatrix x = Input(last, wave);
    softmax_input_[wave].resize(x.size());
    backend_.Download(x.data, softmax_input_[wave].data(), x.size() * sizeof(float));
  }
}

void ReplicaModel::Impl::FinishLayer(int32_t layer, int32_t wave, ConstMatrix y) {
  LayerState& state = layers_[layer];
  const ConstMatrix residual = state.residual ? Input(layer, wave) : ConstMatrix();
  state.dropout.Forward(pass_, wave, y, residual, state.output[wave].view());
}

void ReplicaModel::Impl::ForwardGate(int segment, int32_t wave) {
  const MoeExchange& at = exchange(segment);
  const auto l = static_cast<int32_t>(at.id.layer);
  const LayerState& layer = layers_[l];
  if (layer.moe != nullptr) {
    layer.moe->mixture.Forward(pass_, wave, Input(l, wave), target_[wave]);
  } else if (IsStep(at)) {
    layer.recurrent->ForwardGate(pass_, wave, at.call, target_[wave]);
  } else {
    layer.recurrent->ForwardInput(pass_, wave, Input(l, wave), target_[wave]);
  }
}

void ReplicaModel::Impl::SetMoeOutput(int segment, int32_t wave,
                                      std::span<const float> y) {
  const MoeExchange& at = exchange(segment);
  const LayerState& layer = layers_[at.id.layer];
  if (layer.moe != nullptr) {
    layer.moe->output.Forward(wave, y);
  } else if (IsStep(at)) {
    layer.recurrent->Step(wave, at.call, y);
  } else {
    layer.recurrent->SetInput(wave, y);
  }
}

void ReplicaModel::Impl::Backward(int segment, int32_t wave) {
  CHECK(pass_.training());
  const Matrix gradient = gradient_[wave].view();
  const auto [first, last] = WholeLayers(segment);
  for (int32_t l = last - 1; l >= first; --l) {
    LayerState& layer = layers_[l];
    layer.dropout.Backward(pass_, wave, gradient, scratch_.view());
    layer.lstm->Backward(wave, Input(l, wave), scratch_.view(), /*add=*/layer.residual,
                         gradient);
  }

  if (segment == 0) {
    words_->EmbedBackward(pass_, wave, gradient);
    return;
  }
  const MoeExchange& at = exchange(segment - 1);
  LayerState& layer = layers_[at.id.layer];
  if (!Within(segment)) {
    // What the residual lets past stays in `gradient`; SetMoeGradient adds the rest.
    const Matrix doutput =
        layer.moe != nullptr ? scratch_.view() : layer.recurrent->output_gradient(wave);
    layer.dropout.Backward(pass_, wave, gradient, doutput);
    if (!layer.residual) gradient_[wave].Zero();
    if (layer.recurrent != nullptr) layer.recurrent->BackwardOutput(wave);
  }
  if (layer.moe != nullptr) {
    moe_output_gradient_ = layer.moe->output.Backward(wave, scratch_.view());
  } else if (IsStep(at)) {
    moe_output_gradient_ = layer.recurrent->BackwardStep(wave, at.call);
  } else {
    moe_output_gradient_ = layer.recurrent->BackwardInput(wave);
  }
}

std::vector<int> ReplicaModel::Impl::recomputed(int segment) const {
  std::vector<int> segments;
  if (segment == 0 || !IsStep(exchange(segment - 1))) return segments;
  const MoeExchange& at = exchange(segment - 1);
  for (const RecomputeSchedule::Run& run :
       layers_[at.id.layer].recurrent->again(at.call)) {
    segments.push_back(segment - 1 - (at.call - run.step));
  }
  return segments;
}

void ReplicaModel::Impl::Recompute(int segment, int32_t wave, size_t i,
                                   std::span<const float> y) {
  const MoeExchange& at = exchange(segment - 1);
  RecurrentMoe& layer = *layers_[at.id.layer].recurrent;
  const auto runs = layer.again(at.call);
  layer.Again(pass_, wave, runs[i], /*last=*/i + 1 == runs.size(), y);
}

void ReplicaModel::Impl::SetMoeGradient(int segment, int32_t wave,
                                        std::span<const float> dx,
                                        std::span<const float> dgate,
                                        std::span<const double> dimportance,
                                        std::span<const double> dload) {
  const MoeExchange& at = exchange(segment);
  const LayerState& layer = layers_[at.id.layer];
  if (IsStep(at)) {
    layer.recurrent->BackwardGate(pass_, wave, at.call, dx, dgate, dimportance, dload);
    return;
  }
  CHECK_EQ(static_cast<int64_t>(dx.size()), rows_ * d_);
  scratch_.Upload(dx);
  backend_.Add(scratch_.size(), scratch_.data(), gradient_[wave].data());
  MixtureCaller& mixture =
      layer.moe != nullptr ? layer.moe->mixture : layer.recurrent->input();
  mixture.Backward(pass_, wave, Input(static_cast<int32_t>(at.id.layer), wave), dgate,
                   dimportance, dload, gradient_[wave].view());
}

std::string ReplicaModel::Impl::FirstNonFinite(int32_t wave) const {
  if (!backend_.AllFinite(embedded_[wave].view())) return "embedding output";
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerState& layer = layers_[l];
    if (backend_.AllFinite(layer.output[wave].view())) continue;
    return absl::StrCat("layer", l, " (", layer.kind(), ") output");
  }
  return "";
}

ReplicaModel::ReplicaModel(Backend& backend, const v1::Job& job, const ModelPlan& plan,
                           const DenseParameters& parameters, uint32_t replica,
                           int32_t lanes, int32_t waves, int32_t unroll)
    : impl_(std::make_unique<Impl>(backend, job, plan, parameters, replica, lanes, waves,
                                   unroll)) {}
ReplicaModel::~ReplicaModel() = default;

int ReplicaModel::segments() const { return impl_->segments(); }
const MoeExchange& ReplicaModel::exchange(int segment) const {
  return impl_->exchange(segment);
}
void ReplicaModel::ResetState() { impl_->ResetState(); }
std::string ReplicaModel::SaveState() const { return impl_->SaveState(); }
absl::Status ReplicaModel::LoadState(const std::string& state) {
  return impl_->LoadState(state);
}
void ReplicaModel::BeginStep(uint64_t step, PassMode mode, int64_t tokens_of_step,
                             const StepTables* tables) {
  impl_->BeginStep(step, mode, tokens_of_step, tables);
}
void ReplicaModel::Forward(int segment, int32_t wave, std::span<const int32_t> input,
                           std::span<const int32_t> target) {
  impl_->Forward(segment, wave, input, target);
}
const MoeCall& ReplicaModel::moe_call(int segment, int32_t wave) const {
  return impl_->moe_call(segment, wave);
}
void ReplicaModel::SetMoeOutput(int segment, int32_t wave, std::span<const float> y) {
  impl_->SetMoeOutput(segment, wave, y);
}
double ReplicaModel::loss_sum(int32_t wave) const { return impl_->loss_sum(wave); }
std::span<const float> ReplicaModel::softmax_input(int32_t wave) const {
  return impl_->softmax_input(wave);
}
void ReplicaModel::SetLossSum(int32_t wave, double loss_sum) {
  impl_->SetLossSum(wave, loss_sum);
}
void ReplicaModel::Backward(int segment, int32_t wave) { impl_->Backward(segment, wave); }
std::span<const float> ReplicaModel::moe_output_gradient() const {
  return impl_->moe_output_gradient();
}
std::vector<int> ReplicaModel::recomputed(int segment) const {
  return impl_->recomputed(segment);
}
void ReplicaModel::Recompute(int segment, int32_t wave, size_t i,
                             std::span<const float> y) {
  impl_->Recompute(segment, wave, i, y);
}
void ReplicaModel::SetMoeGradient(int segment, int32_t wave, std::span<const float> dx,
                                  std::span<const float> dgate,
                                  std::span<const double> dimportance,
                                  std::span<const double> dload) {
  impl_->SetMoeGradient(segment, wave, dx, dgate, dimportance, dload);
}
DenseParameters& ReplicaModel::gradients() { return impl_->gradients(); }
SparseRows ReplicaModel::EmbeddingGradients() const {
  return impl_->table_words().EmbeddingGradients();
}
SparseRows ReplicaModel::SoftmaxGradients() const {
  return impl_->table_words().SoftmaxGradients();
}
std::string ReplicaModel::FirstNonFinite(int32_t wave) const {
  return impl_->FirstNonFinite(wave);
}

}  // namespace moe
