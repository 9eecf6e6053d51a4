#include "client/exchange_key.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/job/mixtures.h"

namespace moe {
namespace {

using Case = v1::ExchangeRequest;

// Message: ForwardRequest or BackwardRequest.
template <typename Message>
void CopyName(const Message& message, Message* name) {
  *name->mutable_id() = message.id();
  for (const auto& frame : message.frames()) {
    name->add_frames()->set_replica(frame.replica());
  }
}

}  // namespace

ExchangeKey FrameKey(v1::ExchangeRequest::MessageCase kind, const v1::FrameId& id) {
  ExchangeKey key;
  key.kind = kind;
  key.step = id.step();
  key.mode = id.mode();
  key.wave = id.wave();
  key.layer = id.layer();
  key.mixture = id.mixture();
  key.call = id.call();
  return key;
}

ExchangeKey StepKey(v1::ExchangeRequest::MessageCase kind, uint64_t step) {
  ExchangeKey key;
  key.kind = kind;
  key.step = step;
  return key;
}

ExchangeKey ScoreKey(uint64_t batch, uint32_t wave, uint32_t part) {
  ExchangeKey key = StepKey(Case::kScore, batch);
  key.wave = wave;
  key.part = part;
  return key;
}

ExchangeKey KeyOf(const v1::ExchangeRequest& request) {
  switch (request.message_case()) {
    case Case::kPull: {
      ExchangeKey key = StepKey(Case::kPull, request.pull().version());
      if (request.pull().shards_size() > 0) {
        key.shard = request.pull().shards(0);
      } else if (request.pull().rows_size() > 0) {
        key.shard = request.pull().rows(0).shard();
      }
      return key;
    }
    case Case::kForward:
      return FrameKey(Case::kForward, request.forward().id());
    case Case::kBackward:
      return FrameKey(Case::kBackward, request.backward().id());
    case Case::kClose:
      return StepKey(Case::kClose, request.close().step());
    case Case::kApply:
      return StepKey(Case::kApply, request.apply().step());
    case Case::kScore:
      return ScoreKey(request.score().batch(), request.score().wave(),
                      request.score().part());
    case Case::kHello:
    case Case::MESSAGE_NOT_SET:
      break;
  }
  return StepKey(request.message_case(), 0);
}

ExchangeKey KeyOf(const v1::ExchangeResponse& response) {
  using Response = v1::ExchangeResponse;
  switch (response.message_case()) {
    case Response::kHello:
      return StepKey(Case::kHello, 0);
    case Response::kPull: {
      ExchangeKey key = StepKey(Case::kPull, response.pull().version());
      if (response.pull().shards_size() > 0)
        key.shard = response.pull().shards(0).shard();
      return key;
    }
    case Response::kForward:
      return FrameKey(Case::kForward, response.forward().id());
    case Response::kBackward:
      return FrameKey(Case::kBackward, response.backward().id());
    case Response::kClose:
      return StepKey(Case::kClose, response.close().step());
    case Response::kApply:
      return StepKey(Case::kApply, response.apply().step());
    case Response::kScore:
      return ScoreKey(response.score().batch(), response.score().wave(),
                      response.score().part());
    case Response::kFailure:
    case Response::MESSAGE_NOT_SET:
      break;
  }
  return ExchangeKey();
}

std::string Describe(const ExchangeKey& key) {
  switch (key.kind) {
    case Case::kHello:
      return "hello";
    case Case::kPull:
      return absl::StrFormat("pull of %s version %d", key.shard, key.step);
    case Case::kForward:
    case Case::kBackward:
      return absl::StrCat(
          key.kind == Case::kForward ? "forward" : "backward",
          key.mode == v1::MODE_EVALUATE ? " evaluation batch " : " step ", key.step,
          " wave ", key.wave, " layer ", key.layer,
          key.mixture == kRecurrentMixture ? absl::StrCat(" time step ", key.call) : "");
    case Case::kClose:
      return absl::StrFormat("close of step %d", key.step);
    case Case::kApply:
      return absl::StrFormat("apply of step %d", key.step);
    case Case::kScore:
      return absl::StrFormat("score of evaluation batch %d wave %d part %d", key.step,
                             key.wave, key.part);
    case Case::MESSAGE_NOT_SET:
      break;
  }
  return "an empty message";
}

v1::ExchangeRequest NameOf(const v1::ExchangeRequest& request) {
  v1::ExchangeRequest name;
  name.set_generation(request.generation());
  name.set_sequence(request.sequence());
  switch (request.message_case()) {
    case Case::kForward:
      CopyName(request.forward(), name.mutable_forward());
      return name;
    case Case::kBackward:
      CopyName(request.backward(), name.mutable_backward());
      return name;
    case Case::kClose:
      name.mutable_close()->set_step(request.close().step());
      *name.mutable_close()->mutable_replicas() = request.close().replicas();
      return name;
    default:
      return request;
  }
}

}  // namespace moe
