// Runs one training step and one Adam update of a small model, and writes what went in
// and what came out, for a comparison with another implementation (model_torch_test.py).
//
//   model_dump JOB FOLDER
//
// Tensors (dump.h):
//   parameter/<tensor>, gradient/<tensor>, updated/<tensor>  f32; updated: after Adam
//   m/<tensor>, v/<tensor>              f32 Adam's moments before
//   input/<r>/<w>, target/<r>/<w>       i32 [time, lanes]
//   c/<r>/<w>/<layer>                   f32 [lanes, hidden] carried in
//   output/<r>/<w>/<layer>              f32 [lanes, d] carried in
//   uniform/<layer id>/<r>/<w>          f32 [T, d] dropped if below the rate
//   noise/<gate>/<r>/<w>                f32 [T, n]; <gate>: a mixture, hierarchical also
//                                       <mixture>.group<g>
//   rows/<mixture>/<expert>             i32 [1] rows of the expert
//   candidates                          i32 [S] with tables; "draws": how many drew them
// <mixture>: layer<l>.moe | layer<l>.recurrent_moe.input | layer<l>.recurrent_moe.recurrent
// r: replica, w: wave. "job"; "result": loss_sum, balance_loss; "adam": its constants;
// "own_rate": of tensors that have one.
#include <cstdint>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "common/random/random.h"
#include "glog/logging.h"
#include "google/protobuf/util/json_util.h"
#include "nlohmann/json.hpp"
#include "tests/worker/dump.h"
#include "tests/worker/local_step.h"
#include "tests/worker/small_jobs.h"
#include "worker/layers/candidates.h"

namespace moe::testing {
namespace {

// "layer1.moe"
std::string NameOf(const Mixture& mixture) {
  return mixture.tensors.substr(0, mixture.tensors.size() - 1);
}

void AddTensors(const ModelPlan& plan, const std::string& kind,
                const NamedTensors& tensors, Dump* dump) {
  for (const TensorSpec& spec : plan.tensors) {
    dump->Add(kind + "/" + spec.name, {spec.rows, spec.cols}, tensors.at(spec.name));
  }
}

// The draws of one (replica, wave).
void AddDraws(const v1::Job& job, uint64_t step, uint32_t replica, uint32_t wave,
              Dump* dump) {
  const int64_t rows =
      job.training().lanes() / job.training().waves() * job.training().unroll();
  const auto key = [&](Purpose purpose, uint32_t layer_id, uint32_t group = 0) {
    return MakeKey(job.seed(), purpose,
                   {.layer = layer_id,
                    .step = step,
                    .wave = wave,
                    .replica = replica,
                    .group = group});
  };
  const auto add_noise = [&](const std::string& gate, int64_t n, RandomKey of_gate) {
    std::vector<float> noise(rows * n);
    for (int64_t t = 0; t < rows; ++t) {
      FillNormal(of_gate, t, std::span(noise).subspan(t * n, n));
    }
    dump->Add(Path("noise/" + gate, replica, wave), {rows, n}, noise);
  };
  for (int l = -1; l < job.model().layers_size(); ++l) {
    const int64_t d = job.model().d_model();
    std::vector<float> uniform(rows * d);
    for (int64_t t = 0; t < rows; ++t) {
      FillUniform(key(Purpose::kDropout, l + 1), t, std::span(uniform).subspan(t * d, d));
    }
    dump->Add(Path("uniform", l + 1, replica, wave), {rows, d}, uniform);
  }
  for (const Mixture& mixture : MixturesOf(job)) {
    const v1::Moe& moe = mixture.moe;
    const std::string gate = NameOf(mixture);
    const uint32_t l = mixture.id.layer;
    const RandomKey of_worker =
        key(mixture.id.mixture == kRecurrentMixture ? Purpose::kRecurrentGateNoise
                                                    : Purpose::kGateNoise,
            l + 1);
    if (moe.k_primary() == 0) {
      add_noise(gate, moe.experts(), of_worker);
      continue;
    }
    add_noise(gate, moe.groups(), of_worker);
    for (int32_t g = 0; g < moe.groups(); ++g) {
      add_noise(gate + ".group" + std::to_string(g), moe.experts() / moe.groups(),
                key(Purpose::kSecondaryGateNoise, l + 1, g));
    }
  }
}

// As ReplicaModel::SaveState lays it out: by layer that has one and wave, c, then the output.
void AddState(const v1::Job& job, uint32_t replica, const std::string& state,
              Dump* dump) {
  const int64_t lanes = job.training().lanes() / job.training().waves();
  std::vector<float> values(state.size() / sizeof(float));
  std::memcpy(values.data(), state.data(), state.size());
  std::span<const float> rest = values;
  for (int l = 0; l < job.model().layers_size(); ++l) {
    const v1::Layer& layer = job.model().layers(l);
    if (layer.has_moe()) continue;
    const int64_t hidden =
        layer.has_lstm() ? layer.lstm().hidden() : layer.recurrent_moe().hidden();
    for (int32_t w = 0; w < job.training().waves(); ++w) {
      for (const auto& [kind, width] :
           {std::pair("c", hidden),
            std::pair("output", int64_t{job.model().d_model()})}) {
        dump->Add(Path(kind, replica, w, l), {lanes, width}, rest.first(lanes * width));
        rest = rest.subspan(lanes * width);
      }
    }
  }
  CHECK(rest.empty());
}

void Run(const std::string& name, const std::string& folder) {
  std::string error;
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/2, &error);
  CHECK(backend != nullptr) << error;
  const v1::Job job = SmallJob(name);
  const ModelPlan plan = MakeModelPlan(job);
  Dump dump;

  const NamedTensors parameters = RandomParameters(job, 17);
  AddTensors(plan, "parameter", parameters, &dump);
  LocalModel model(*backend, job);
  model.SetParameters(parameters);
  model.Train(/*step=*/0, RandomBatches(job, 18));  // for its state
  constexpr uint64_t kStep = 1;
  const auto batches = RandomBatches(job, 19);
  for (uint32_t r = 0; r < batches.size(); ++r) {
    AddState(job, r, model.replica(r).SaveState(), &dump);
    for (uint32_t w = 0; w < batches[r].size(); ++w) {
      const int64_t lanes = job.training().lanes() / job.training().waves();
      dump.Add(Path("input", r, w), {job.training().unroll(), lanes},
               batches[r][w].input);
      dump.Add(Path("target", r, w), {job.training().unroll(), lanes},
               batches[r][w].target);
      AddDraws(job, kStep, r, w, &dump);
    }
  }

  if (job.model().has_tables()) {
    const Candidates drawn = DrawCandidates(job.seed(), kStep, job.model().vocabulary(),
                                            job.model().tables().candidates());
    dump.Add("candidates", {job.model().tables().candidates()}, drawn.words);
    dump.json()["draws"] = drawn.draws;
  }

  const LocalModel::StepResult result = model.Train(kStep, batches);
  AddTensors(plan, "gradient", result.gradients, &dump);
  dump.json()["result"] = {{"loss_sum", result.loss_sum},
                           {"balance_loss", result.balance_loss}};
  std::map<std::string, std::vector<int32_t>> rows;  // by mixture
  for (size_t i = 0; i < result.choices.size(); ++i) {
    const Mixture& mixture = model.mixture(static_cast<int>(i));
    std::vector<int32_t>& of_mixture = rows[NameOf(mixture)];
    of_mixture.resize(mixture.moe.experts());
    for (const auto& of_replica : result.choices[i]) {
      for (const auto& of_wave : of_replica) {
        for (int32_t expert : of_wave.expert) ++of_mixture[expert];
      }
    }
  }
  for (const auto& [name, of_mixture] : rows) {
    for (size_t e = 0; e < of_mixture.size(); ++e) {
      dump.Add("rows/" + name + "/" + std::to_string(e), {1}, {&of_mixture[e], 1});
    }
  }

  // Moments as of a later step: positive second ones, so that an update doesn't hang on
  // the sign of a tiny gradient.
  NamedTensors m = RandomParameters(job, 20), v = RandomParameters(job, 21);
  for (auto& [tensor, values] : m) {
    for (float& value : values) value *= 0.02f;
  }
  for (auto& [tensor, values] : v) {
    for (float& value : values) value = 0.001f * (value + 0.6f);
  }
  AddTensors(plan, "m", m, &dump);
  AddTensors(plan, "v", v, &dump);
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.adam.rate = 0.05f;
  step.adam.count = 3;
  model.Update(step, &m, &v);
  AddTensors(plan, "updated", model.GetParameters(), &dump);
  dump.json()["own_rate"] = nlohmann::json::object();
  for (const TensorSpec& tensor : plan.tensors) {
    if (tensor.own_rate > 0) dump.json()["own_rate"][tensor.name] = tensor.own_rate;
  }
  dump.json()["adam"] = {{"rate", step.adam.rate},
                         {"beta1", step.adam.beta1},
                         {"beta2", step.adam.beta2},
                         {"epsilon", step.adam.epsilon},
                         {"count", step.adam.count}};

  std::string job_json;
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  CHECK(google::protobuf::util::MessageToJsonString(job, &job_json, options).ok());
  dump.json()["job"] = nlohmann::json::parse(job_json);
  dump.Write(folder);
}

}  // namespace
}  // namespace moe::testing

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "Usage: model_dump JOB FOLDER\n";
    return 2;
  }
  moe::testing::Run(argv[1], argv[2]);
}
