#include "client/routing_plan.h"

#include "glog/logging.h"

namespace moe {

std::vector<int32_t> ExpertLayout::HostsOf(int32_t group) const {
  std::vector<int32_t> hosts = {server_of_group[group]};
  if (!standby_of_group.empty() && standby_of_group[group] >= 0) {
    hosts.push_back(standby_of_group[group]);
  }
  return hosts;
}

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

  // A group's copies: the server, and the position among its groups.
  struct Copy {
    int32_t server;
    size_t position;
  };
  std::vector<std::vector<Copy>> copies(layout.groups);
  for (int32_t g = 0; g < layout.groups; ++g) {
    for (const int32_t host : layout.HostsOf(g)) {
      std::vector<Group>& groups = servers_[host].groups;
      copies[g].push_back({host, groups.size()});
      groups.emplace_back().group = g;
    }
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
      for (const Copy& copy : copies[g]) {
        Server& server = servers_[copy.server];
        if (server.token.empty() || server.token.back() != static_cast<uint32_t>(t)) {
          server.token.push_back(t);
        }
        Group& group = server.groups[copy.position];
        if (group.token.empty() || group.token.back() != t) group.token.push_back(t);
        group.row.push_back(static_cast<uint32_t>(server.token.size() - 1));
        group.expert.push_back(e - g * b);
        group.gate.push_back(gate[c]);
        group.choice.push_back(c);
      }
    }
  }
}

}  // namespace moe
