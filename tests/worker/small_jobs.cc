#include "tests/worker/small_jobs.h"

#include <map>

#include "glog/logging.h"
#include "google/protobuf/text_format.h"

namespace moe::testing {
namespace {

const std::map<std::string, std::string>& Layers() {
  static const auto* const layers = new std::map<std::string, std::string>{
      {"lstm_moe_lstm", R"pb(
         layers {
           lstm { hidden: 7 }
           dropout: 0.2
           residual: true
         }
         layers {
           moe {
             experts: 6
             k: 2
             hidden: 9
             groups: 2
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
             sigmoid_output: true
           }
           dropout: 0.25
           residual: true
         }
         layers {
           lstm { hidden: 7 }
           dropout: 0.1
         }
       )pb"},
      {"moe_moe", R"pb(
         layers {
           moe {
             experts: 4
             k: 3
             hidden: 5
             groups: 1
             gating: GATING_NOISY_TOP_K
             w_importance: 0.1
           }
         }
         layers {
           lstm { hidden: 7 }
           dropout: 0.3
           residual: true
         }
         layers {
           moe {
             experts: 5
             k: 1
             hidden: 6
             groups: 5
             gating: GATING_NOISY_TOP_K
             w_load: 0.4
           }
           dropout: 0.1
         }
       )pb"},
      {"all_experts", R"pb(
         layers {
           lstm { hidden: 7 }
           residual: true
         }
         layers {
           moe {
             experts: 3
             k: 3
             hidden: 5
             groups: 1
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
             sigmoid_output: true
           }
           dropout: 0.2
         }
       )pb"},
      {"dense", R"pb(
         layers {
           moe {
             experts: 1
             k: 1
             hidden: 9
             groups: 1
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
             sigmoid_output: true
           }
           dropout: 0.2
           residual: true
         }
         layers {
           lstm { hidden: 7 }
           dropout: 0.1
         }
       )pb"},
      {"deep", R"pb(
         layers {
           lstm { hidden: 7 }
           residual: true
         }
         layers {
           moe {
             experts: 4
             k: 2
             hidden: [ 9, 5, 8 ]
             groups: 2
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
             sigmoid_output: true
           }
           dropout: 0.1
           residual: true
         }
       )pb"},
      {"strict", R"pb(
         layers {
           lstm { hidden: 7 }
           dropout: 0.2
           residual: true
         }
         layers {
           moe {
             experts: 6
             k: 2
             hidden: 5
             groups: 3
             gating: GATING_STRICTLY_BALANCED
             w_importance: 0.2
             sigmoid_output: true
           }
           dropout: 0.1
           residual: true
         }
         layers {
           moe { experts: 3 k: 1 hidden: 5 groups: 1 gating: GATING_STRICTLY_BALANCED }
           residual: true
         }
       )pb"},
      {"softmax", R"pb(
         layers {
           lstm { hidden: 7 }
           residual: true
         }
         layers {
           moe {
             experts: 5
             k: 5
             hidden: 5
             groups: 5
             gating: GATING_SOFTMAX
             w_importance: 0.3
             sigmoid_output: true
           }
           dropout: 0.2
         }
       )pb"},
      {"hierarchical", R"pb(
         layers {
           lstm { hidden: 7 }
           dropout: 0.2
           residual: true
         }
         layers {
           moe {
             experts: 9
             k: 2
             hidden: 5
             groups: 3
             k_primary: 2
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
             sigmoid_output: true
           }
           dropout: 0.1
           residual: true
         }
         layers { lstm { hidden: 7 } }
       )pb"},
      {"hierarchical_extremes", R"pb(
         layers {
           moe {
             experts: 4
             k: 2
             hidden: 5
             groups: 2
             k_primary: 2
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
           }
           residual: true
         }
         layers {
           moe {
             experts: 10
             k: 1
             hidden: [ 4, 3 ]
             groups: 5
             k_primary: 1
             gating: GATING_NOISY_TOP_K
             w_importance: 0.2
             w_load: 0.3
           }
           dropout: 0.1
           residual: true
         }
       )pb"},
      {"recurrent", R"pb(
         layers {
           lstm { hidden: 7 }
           residual: true
         }
         layers {
           recurrent_moe {
             hidden: 7
             input {
               experts: 6
               k: 2
               groups: 2
               gating: GATING_NOISY_TOP_K
               w_importance: 0.2
               w_load: 0.3
             }
             recurrent {
               experts: 4
               k: 2
               hidden: [ 5, 6 ]
               groups: 4
               gating: GATING_NOISY_TOP_K
               w_importance: 0.3
               w_load: 0.2
             }
             forget_bias: 1
           }
           dropout: 0.2
           residual: true
         }
         layers { lstm { hidden: 7 } }
       )pb"},
      {"recomputed", R"pb(
         layers {
           recurrent_moe {
             hidden: 7
             input { experts: 3 k: 3 hidden: 5 groups: 1 gating: GATING_SOFTMAX }
             recurrent {
               experts: 5
               k: 1
               groups: 5
               gating: GATING_NOISY_TOP_K
               w_importance: 0.2
               w_load: 0.3
             }
             kept_states: 1
           }
           dropout: 0.1
         }
         layers {
           moe {
             experts: 4
             k: 2
             hidden: 5
             groups: 2
             gating: GATING_NOISY_TOP_K
             w_load: 0.1
           }
           residual: true
         }
         layers {
           recurrent_moe {
             hidden: 7
             input { experts: 3 k: 2 groups: 3 gating: GATING_NOISY_TOP_K w_load: 0.2 }
             recurrent {
               experts: 3
               k: 3
               groups: 1
               gating: GATING_SOFTMAX
               w_importance: 0.2
             }
             kept_states: 2
           }
           residual: true
         }
       )pb"},
      {"lstm", R"pb(
         layers {
           lstm { hidden: 7 }
           dropout: 0.2
           residual: true
         }
         layers { lstm { hidden: 7 } }
       )pb"},
      {"projected", R"pb(
         layers {
           lstm { hidden: 10 projection: 7 }
           dropout: 0.2
           residual: true
         }
         layers {
           lstm { hidden: 5 projection: 7 }
           dropout: 0.1
         }
       )pb"},
      {"tables", R"pb(
         tables { shards: 3 candidates: 12 }
         layers {
           lstm { hidden: 7 }
           dropout: 0.2
           residual: true
         }
         layers {
           moe {
             experts: 4
             k: 2
             hidden: 5
             groups: 2
             gating: GATING_NOISY_TOP_K
             w_importance: 0.1
             w_load: 0.2
           }
           dropout: 0.1
           residual: true
         }
       )pb"}};
  return *layers;
}

}  // namespace

std::vector<std::string> SmallJobNames() {
  std::vector<std::string> names;
  for (const auto& [name, layers] : Layers()) names.push_back(name);
  return names;
}

v1::Job SmallJob(const std::string& name) {
  // With tables enough words that a step leaves some alone.
  const std::string vocabulary = name == "tables" ? "31" : "11";
  const std::string text = "name: '" + name +
                           "' seed: 42 model { d_model: 7 vocabulary: " + vocabulary +
                           " embedding_dropout: 0.15 " + Layers().at(name) + R"pb(
    }
    optimizer { adam {} schedule { base_rate: 0.01 constant {} } }
      training { replicas: 2 waves: 2 lanes: 4 unroll: 3 steps: 1 dense_shards: 3 }
  )pb";
  v1::Job job;
  CHECK(google::protobuf::TextFormat::ParseFromString(text, &job)) << text;
  return job;
}

}  // namespace moe::testing
