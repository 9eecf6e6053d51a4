#include "worker/models/recurrent_moe.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {
namespace {

MixtureCaller MakeCaller(Backend& backend, uint32_t layer_id, const v1::Moe& moe,
                         const std::function<Parameter(const std::string&)>& parameter,
                         const std::string& part, const GateCalls& calls, int64_t width) {
  const auto of_part = [&](const std::string& name) {
    return parameter(absl::StrCat(part, ".", name));
  };
  return {backend, MakeGate(backend, layer_id, moe, of_part, calls), calls, width};
}

std::optional<RecomputeSchedule> MakeSchedule(int32_t steps, int32_t kept_states) {
  if (kept_states == 0) return std::nullopt;
  return RecomputeSchedule(steps, std::min(steps, kept_states));
}

}  // namespace

RecurrentMoe::RecurrentMoe(Backend& backend, uint32_t layer_id,
                           const v1::RecurrentMoe& layer,
                           const std::function<Parameter(const std::string&)>& parameter,
                           int32_t lanes, int32_t unroll, int32_t waves)
    : backend_(backend),
      hidden_(layer.hidden()),
      lanes_(lanes),
      steps_(unroll),
      b_(parameter("b")),
      schedule_(MakeSchedule(unroll, layer.kept_states())),
      // The model's width is that of the cell.
      input_(MakeCaller(backend, layer_id, layer.input(), parameter, "input",
                        {.rows = int64_t{lanes} * unroll, .waves = waves}, hidden_)),
      recurrent_(MakeCaller(backend, layer_id, layer.recurrent(), parameter, "recurrent",
                            {.rows = lanes,
                             .waves = waves,
                             .calls = unroll,
                             .repeats = recomputes(),
                             .noise = Purpose::kRecurrentGateNoise},
                            hidden_)),
      rows_(backend, lanes, 4 * hidden_),
      dy_(int64_t{lanes} * unroll * 4 * hidden_) {
  CHECK_EQ(b_.value.cols, 4 * hidden_);
  const int64_t rows = lanes_ * steps_;
  for (int32_t i = 0; i < waves; ++i) {
    Wave& w = waves_.emplace_back();
    w.z = Tensor(backend, rows, 4 * hidden_);
    if (recomputes()) w.gates = Tensor(backend, lanes_, 4 * hidden_);
    w.tanh_c = Tensor(backend, recomputes() ? lanes_ : rows, hidden_);
    w.c = Tensor(backend, lanes_ + (recomputes() ? lanes_ : rows), hidden_);
    w.h = Tensor(backend, w.c.rows(), hidden_);
    w.dr = Tensor(backend, rows, hidden_);
    w.dc = Tensor(backend, lanes_, hidden_);
    w.state = Tensor(backend, 1, lanes_ * 2 * hidden_);
    w.state.Zero();
    const int32_t slots = std::min(steps_, layer.kept_states());
    for (int32_t s = 0; s < slots; ++s) {
      w.kept.emplace_back(backend, 1, w.state.size());
    }
  }
}

RecurrentMoe::State RecurrentMoe::StateOf(const Wave& w, int32_t t) const {
  const int64_t begin = (recomputes() ? t % 2 : t) * lanes_;
  return {w.c.Rows(begin, lanes_), w.h.Rows(begin, lanes_)};
}

Matrix RecurrentMoe::GatesOf(const Wave& w, int32_t t) const {
  return recomputes() ? w.gates.view() : w.z.Rows(t * lanes_, lanes_);
}

Matrix RecurrentMoe::TanhOf(const Wave& w, int32_t t) const {
  return recomputes() ? w.tanh_c.view() : w.tanh_c.Rows(t * lanes_, lanes_);
}

void RecurrentMoe::Load(const Tensor& from, const State& to) const {
  const size_t bytes = to.c.size() * sizeof(float);
  backend_.Copy(from.data(), to.c.data, bytes);
  backend_.Copy(from.data() + to.c.size(), to.h.data, bytes);
}

void RecurrentMoe::Save(const State& from, const Tensor& to) const {
  const size_t bytes = from.c.size() * sizeof(float);
  backend_.Copy(from.c.data, to.data(), bytes);
  backend_.Copy(from.h.data, to.data() + from.c.size(), bytes);
}

// ---------------------------------------------------------------- forward

void RecurrentMoe::ForwardInput(const Pass& pass, int32_t wave, ConstMatrix x,
                                std::span<const int32_t> target) {
  input_.Forward(pass, wave, x, target);
}

void RecurrentMoe::SetInput(int32_t wave, std::span<const float> y) {
  Wave& w = waves_[wave];
  CHECK_EQ(static_cast<int64_t>(y.size()), w.z.size());
  backend_.BroadcastRow(b_.value.data, w.z.view());
  for (int32_t t = 0; t < steps_; ++t) {
    rows_.Upload(y.subspan(t * rows_.size(), rows_.size()));
    backend_.Add(rows_.size(), rows_.data(), w.z.Rows(t * lanes_, lanes_).data);
  }
  Load(w.state, StateOf(w, 0));
  if (recomputes()) Save(StateOf(w, 0), w.kept[0]);
}

void RecurrentMoe::ForwardGate(const Pass& pass, int32_t wave, int32_t t,
                               std::span<const int32_t> target) {
  recurrent_.Forward(pass, {wave, t}, StateOf(waves_[wave], t).h,
                     target.subspan(t * lanes_, lanes_));
}

void RecurrentMoe::RunCell(Wave& w, int32_t t, std::span<const float> y) {
  const Matrix gates = GatesOf(w, t);
  CHECK_EQ(static_cast<int64_t>(y.size()), gates.size());
  if (recomputes()) {
    backend_.Copy(w.z.Rows(t * lanes_, lanes_).data, gates.data,
                  gates.size() * sizeof(float));
  }
  rows_.Upload(y);
  backend_.Add(rows_.size(), rows_.data(), gates.data);
  const State after = StateOf(w, t + 1);
  backend_.LstmCellForward(gates, StateOf(w, t).c, after.c, TanhOf(w, t), after.h);
}

void RecurrentMoe::Step(int32_t wave, int32_t t, std::span<const float> y) {
  Wave& w = waves_[wave];
  RunCell(w, t, y);
  const State after = StateOf(w, t + 1);
  if (recomputes()) {
    backend_.Copy(after.h.data, w.dr.Rows(t * lanes_, lanes_).data,
                  after.h.size() * sizeof(float));
    const int32_t slot = schedule_->forward()[t].keep;
    if (slot != RecomputeSchedule::kNone) Save(after, w.kept[slot]);
  }
  if (t == steps_ - 1) Save(after, w.state);
}

ConstMatrix RecurrentMoe::output(int32_t wave) const {
  const Wave& w = waves_[wave];
  return recomputes() ? w.dr.view() : w.h.Rows(lanes_, steps_ * lanes_);
}

// ---------------------------------------------------------------- backward

std::span<const RecomputeSchedule::Run> RecurrentMoe::again(int32_t t) const {
  if (!recomputes()) return {};
  return schedule_->again(t);
}

void RecurrentMoe::Again(const Pass& pass, int32_t wave,
                         const RecomputeSchedule::Run& run, bool last,
                         std::span<const float> y) {
  Wave& w = waves_[wave];
  if (run.from != RecomputeSchedule::kNone) {
    Load(w.kept[run.from], StateOf(w, run.step));
  }
  RunCell(w, run.step, y);
  if (run.keep != RecomputeSchedule::kNone) {
    Save(StateOf(w, run.step + 1), w.kept[run.keep]);
  }
  if (last) recurrent_.Repeat(pass, {wave, run.step}, StateOf(w, run.step).h);
}

std::span<const float> RecurrentMoe::BackwardStep(int32_t wave, int32_t t) {
  Wave& w = waves_[wave];
  const Matrix dz = w.z.Rows(t * lanes_, lanes_);
  backend_.LstmCellBackward(GatesOf(w, t), StateOf(w, t).c, TanhOf(w, t),
                            w.dr.Rows(t * lanes_, lanes_), w.dc.view(), dz);
  backend_.Download(dz.data, dy_.data(), dz.size() * sizeof(float));
  return std::span(dy_).first(dz.size());
}

void RecurrentMoe::BackwardGate(const Pass& pass, int32_t wave, int32_t t,
                                std::span<const float> dx, std::span<const float> dgate,
                                std::span<const double> dimportance,
                                std::span<const double> dload) {
  Wave& w = waves_[wave];
  const State before = StateOf(w, t);
  CHECK_EQ(static_cast<int64_t>(dx.size()), before.h.size());
  const Matrix uploaded(rows_.data(), lanes_, hidden_);
  backend_.Upload(dx.data(), uploaded.data, dx.size_bytes());
  // Nothing is asked of what goes into the state carried in.
  Matrix dh = uploaded;
  if (t > 0) {
    dh = w.dr.Rows((t - 1) * lanes_, lanes_);
    backend_.Add(uploaded.size(), uploaded.data, dh.data);
  }
  recurrent_.Backward(pass, {wave, t}, before.h, dgate, dimportance, dload, dh);
}

std::span<const float> RecurrentMoe::BackwardInput(int32_t wave) {
  const Matrix dz = waves_[wave].z.view();
  backend_.AddColumnSums(dz, b_.gradient.data);
  backend_.Download(dz.data, dy_.data(), dz.size() * sizeof(float));
  return dy_;
}

}  // namespace moe
