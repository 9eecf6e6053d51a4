// Models small enough to be checked element by element. Sizes are odd, so that loop tails
// run.
#pragma once

#include <string>
#include <vector>

#include "proto/moe/v1/job.pb.h"

namespace moe::testing {

// All with 2 replicas, 2 waves, 4 lanes, 3 time steps, and dropout.
//   lstm_moe_lstm  residuals, sigmoid, both balancing losses
//   moe_moe        an MoE layer first and one last, neither residual nor sigmoid
//   all_experts    k = n: no gradient through the load
//   dense          one expert: the baseline without gating
//   deep           experts with three hidden layers
//   strict         strictly balanced gating; tokens with all experts and with none
//   softmax        softmax gating
//   hierarchical   2 of 3 groups, 2 of 3 experts in each, both balancing losses
//   hierarchical_extremes
//                  a layer in which every token goes everywhere, and one with 1 of 5 groups
//                  and 1 of 2 experts
//   recurrent      an LSTM, a recurrent MoE of linear and of deep experts with both balancing losses,
//                  and an LSTM
//   recomputed     two recurrent MoEs and a MoE layer between them; one keeps one state, one two;
//                  one mixture with softmax gating
//   lstm           no MoE layer
//   projected      LSTMs with a projection, wider and narrower than the model
//   tables         embedding and softmax as tables; an LSTM and a MoE layer
std::vector<std::string> SmallJobNames();
v1::Job SmallJob(const std::string& name);

}  // namespace moe::testing
