#include "client/routing_plan.h"

#include "glog/logging.h"

namespace moe {

RoutingPlan::RoutingPlan(const ExpertLayout& layout, std::span<const int32_t> offset,
                         std::span<const int32_t> expert, std::span<const float> gate)
    : tokens_(static_cast<int32_t>(offset.size()) - 1),
      choices_(static_cast<int64_t>(expert.size())),
      servers_(layout.servers) {
  CHECK_GE(tokens_, 0);
  CHECK_EQ(offset.front(), 0);
  CHECK_EQ(offset.back(), choices_);
  CHECK_EQ(gate.size(), expert.size());
  CHECK_EQ(layout.server_of_group.size(), static_cast<size_t>(layout.groups));
  const int32_t b = layout.choices_per_group();

  // Position of each group among its server's.
  std::vector<int32_t> position(layout.groups);
  for (int32_t g = 0; g < layout.groups; ++g) {
    std::vector<Group>& groups = servers_[layout.server_of_group[g]].groups;
    position[g] = static_cast<int32_t>(groups.size());
    groups.emplace_back().group = g;
  }

  // Tokens ascend, and experts within a token: so all lists come out in order.
  for (int32_t t = 0; t < tokens_; ++t) {
    for (int32_t c = offset[t]; c < offset[t + 1]; ++c) {
      const int32_t e = expert[c];
      CHECK_GE(e, 0);
      CHECK_LT(e, layout.choices());
      CHECK(c == offset[t] || expert[c - 1] < e)
          << "experts of token " << t << " don't ascend";
      const int32_t g = e / b;
      Server& server = servers_[layout.server_of_group[g]];
      if (server.token.empty() || server.token.back() != static_cast<uint32_t>(t)) {
        server.token.push_back(t);
      }
      Group& group = server.groups[position[g]];
      if (group.token.empty() || group.token.back() != t) group.token.push_back(t);
      group.row.push_back(static_cast<uint32_t>(server.token.size() - 1));
      group.expert.push_back(e - g * b);
      group.gate.push_back(gate[c]);
      group.choice.push_back(c);
    }
  }
}

}  // namespace moe
