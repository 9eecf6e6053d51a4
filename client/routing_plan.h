// Where the rows of one micro-batch go: computed once from the gate's choices, it serves
// dispatch, combine and both of their backwards.
//
// A token's row goes once to each server that hosts any of its experts, and comes back
// once for each group; the worker adds groups in group order. Of a group with two copies both get it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moe {

// The experts of one mixture on their servers.
struct ExpertLayout {
  // Numbers in a row, to the experts and back.
  int64_t in = 0;
  int64_t out = 0;
  int32_t experts = 0;
  int32_t groups = 0;
  int32_t servers = 0;
  // The worker's gate chooses groups, and each group's own gate among its experts.
  bool hierarchical = false;
  // Experts that a group's own gate chooses for each of its rows; hierarchical only.
  int32_t k = 0;
  // [groups]: index of the server that hosts each.
  std::vector<int32_t> server_of_group;
  // [groups]: of the server that has its second copy, -1: none has. Empty: no group has one.
  std::vector<int32_t> standby_of_group;

  int32_t experts_per_group() const { return experts / groups; }
  // Of what the worker's gate chooses among, in a group and in the layer.
  int32_t choices_per_group() const { return hierarchical ? 1 : experts_per_group(); }
  int32_t choices() const { return hierarchical ? groups : experts; }
  // Servers that have a copy of the group.
  std::vector<int32_t> HostsOf(int32_t group) const;
};

class RoutingPlan {
 public:
  // One group's pairs of (row, expert), ascending by row, then expert.
  struct Group {
    int32_t group = 0;
    // [p]: row in the server's frame, expert within the group (hierarchical: 0), gate.
    std::vector<uint32_t> row;
    std::vector<uint32_t> expert;
    std::vector<float> gate;
    // [p]: position of the choice in the gate's arrays.
    std::vector<int32_t> choice;
    // [q]: tokens of the group's distinct rows, ascending.
    std::vector<int32_t> token;
  };
  // All that goes to one server.
  struct Server {
    // [rows]: tokens, ascending.
    std::vector<uint32_t> token;
    // Every group of the layer that the server hosts, ascending, empty ones included.
    std::vector<Group> groups;
  };

  // Token t chose the experts [offset[t], offset[t + 1]), any number of them, ascending;
  // hierarchical: groups instead of experts. offset: [tokens + 1]; expert, gate: [choices].
  RoutingPlan(const ExpertLayout& layout, std::span<const int32_t> offset,
              std::span<const int32_t> expert, std::span<const float> gate);

  int32_t tokens() const { return tokens_; }
  // Pairs of token and expert, over all servers.
  int64_t choices() const { return choices_; }
  const std::vector<Server>& servers() const { return servers_; }

 private:
  int32_t tokens_;
  int64_t choices_;
  std::vector<Server> servers_;
};

}  // namespace moe
