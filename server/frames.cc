#include "server/frames.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/tensor/bytes.h"
#include "server/fields.h"
#include "server/refusal.h"

namespace moe {
namespace {

// Sums over so many tokens: `expected` of them in training, none in evaluation.
absl::StatusOr<std::vector<double>> Sums(
    const std::string& field, v1::Mode mode, size_t expected, uint32_t tokens,
    const google::protobuf::RepeatedField<double>& values) {
  if (mode != v1::MODE_TRAIN) expected = 0;
  if (static_cast<size_t>(values.size()) != expected) {
    return Bad(field, " has ", values.size(), " values instead of ", expected);
  }
  for (double value : values) {
    if (!std::isfinite(value)) return Bad(field, " has a NaN or an infinity");
    if (value < 0 || value > tokens * kMostGate) {
      return Bad(field, " ", value, " is not between 0 and the number of tokens, ",
                 tokens);
    }
  }
  return std::vector<double>(values.begin(), values.end());
}

absl::Status CheckGates(std::span<const float> gates) {
  for (float gate : gates) {
    if (!(gate >= 0 && gate <= kMostGate)) {
      return Bad("gate ", gate, " is not between 0 and 1");
    }
  }
  return absl::OkStatus();
}

// rows, tokens: of the frame.
absl::StatusOr<GroupPairs> DecodePairs(const LayerShape& shape, v1::Mode mode,
                                       int64_t rows, uint32_t tokens,
                                       const v1::GroupRouting& routing) {
  GroupPairs pairs;
  ASSIGN_OR_RETURN(const std::vector<uint32_t> row,
                   GetArray<uint32_t>("row", routing.row()));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> expert,
                   GetArray<uint32_t>("expert", routing.expert()));
  ASSIGN_OR_RETURN(pairs.gate, GetArray<float>("gate", routing.gate()));
  if (expert.size() != row.size() || pairs.gate.size() != row.size()) {
    return Bad("row, expert and gate have ", row.size(), ", ", expert.size(), " and ",
               pairs.gate.size(), " elements instead of equally many");
  }
  for (size_t i = 0; i < row.size(); ++i) {
    RETURN_IF_ERROR(CheckRow(row[i], rows));
    if (expert[i] >= static_cast<uint32_t>(shape.experts_per_group)) {
      return Bad("expert ", expert[i], " is out of range: the group has ",
                 shape.experts_per_group);
    }
    if (i > 0 && std::pair(row[i - 1], expert[i - 1]) >= std::pair(row[i], expert[i])) {
      return Bad("pair ", i, " (row ", row[i], ", expert ", expert[i],
                 ") does not come after the one before it");
    }
  }
  RETURN_IF_ERROR(CheckGates(pairs.gate));
  pairs.row.assign(row.begin(), row.end());
  pairs.expert.assign(expert.begin(), expert.end());
  ASSIGN_OR_RETURN(pairs.importance, Sums("importance", mode, shape.experts_per_group,
                                          tokens, routing.importance()));
  ASSIGN_OR_RETURN(pairs.load,
                   Sums("load", mode, shape.experts_per_group, tokens, routing.load()));
  return pairs;
}

absl::StatusOr<GroupRows> DecodeRows(v1::Mode mode, int64_t rows, uint32_t tokens,
                                     const v1::GroupRouting& routing) {
  GroupRows chosen;
  ASSIGN_OR_RETURN(const std::vector<uint32_t> row,
                   GetArray<uint32_t>("row", routing.row()));
  ASSIGN_OR_RETURN(chosen.gate, GetArray<float>("gate", routing.gate()));
  if (!routing.expert().empty()) {
    return Bad(
        "expert has ", routing.expert().size(),
        " bytes instead of none: the layer is hierarchical, and the server chooses");
  }
  if (chosen.gate.size() != row.size()) {
    return Bad("row and gate have ", row.size(), " and ", chosen.gate.size(),
               " elements instead of equally many");
  }
  RETURN_IF_ERROR(CheckAscendingRows(row, rows));
  RETURN_IF_ERROR(CheckGates(chosen.gate));
  chosen.row.assign(row.begin(), row.end());
  RETURN_IF_ERROR(Sums("importance", mode, 0, tokens, routing.importance()).status());
  ASSIGN_OR_RETURN(const std::vector<double> load,
                   Sums("load", mode, 1, tokens, routing.load()));
  if (!load.empty()) chosen.load = load[0];
  return chosen;
}

absl::StatusOr<Moments> DecodeMoments(const std::string& name, bool present,
                                      const v1::Moments& message) {
  if (!present) {
    return Bad("the moments of ", name, " are missing, but the layer is hierarchical");
  }
  const Moments moments = {message.mean(), message.variance()};
  for (double value : {moments.mean, moments.variance}) {
    if (!std::isfinite(value) || value < 0) {
      return Bad("mean ", moments.mean, " and variance ", moments.variance, " of ", name,
                 " are not numbers from 0 on");
    }
  }
  return moments;
}

absl::Status CheckTokens(std::span<const uint32_t> token, uint32_t tokens) {
  if (tokens > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return Bad(tokens, " tokens are too many");
  }
  for (size_t i = 0; i < token.size(); ++i) {
    if (token[i] >= tokens) {
      return Bad("token ", token[i], " is out of range: there are ", tokens);
    }
    if (i > 0 && token[i - 1] >= token[i]) {
      return Bad("token ", token[i], " comes after token ", token[i - 1],
                 "; tokens must ascend");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CloseInput::Gradient> DecodeGradient(
    const std::map<std::string, int64_t>& dense, const v1::GradientNode& node) {
  const std::string name = absl::StrCat("gradient of ", node.shard(), " node (",
                                        node.level(), ", ", node.index(), ")");
  const auto shard = dense.find(node.shard());
  if (shard == dense.end()) return Bad(name, ": no such dense shard here");
  CloseInput::Gradient gradient;
  gradient.shard = node.shard();
  gradient.node = {node.level(), node.index()};
  ASSIGN_OR_RETURN(gradient.sum, GetArray<float>(name, node.gradient()));
  if (static_cast<int64_t>(gradient.sum.size()) != shard->second) {
    return Bad(name, " has ", gradient.sum.size(), " values instead of ", shard->second);
  }
  if (!AllFinite(gradient.sum)) return Bad(name, " has a NaN or an infinity");
  return gradient;
}

}  // namespace

absl::StatusOr<ForwardInput> DecodeForward(Backend& backend, const LayerShape& shape,
                                           v1::Mode mode, const v1::ForwardFrame& frame,
                                           const Pieces& x) {
  ForwardInput input;
  input.tokens = frame.tokens();
  ASSIGN_OR_RETURN(const std::vector<uint32_t> token,
                   GetArray<uint32_t>("token", frame.token()));
  RETURN_IF_ERROR(CheckTokens(token, frame.tokens()));
  input.token.assign(token.begin(), token.end());
  const int64_t rows = static_cast<int64_t>(token.size());
  if (frame.groups_size() != static_cast<int>(shape.groups.size())) {
    return Bad("has ", frame.groups_size(), " groups; groups ",
               absl::StrJoin(shape.groups, ","), " are hosted here");
  }
  for (int g = 0; g < frame.groups_size(); ++g) {
    const v1::GroupRouting& routing = frame.groups(g);
    if (routing.group() != shape.groups[g]) {
      return Bad("group ", routing.group(), " in place ", g, "; groups ",
                 absl::StrJoin(shape.groups, ","), " are hosted here");
    }
    const std::string name = absl::StrCat("group ", routing.group());
    if (shape.hierarchical) {
      absl::StatusOr<GroupRows> chosen = DecodeRows(mode, rows, input.tokens, routing);
      RETURN_IF_ERROR(Annotate(chosen.status(), name));
      input.rows.push_back(*std::move(chosen));
    } else {
      absl::StatusOr<GroupPairs> pairs =
          DecodePairs(shape, mode, rows, input.tokens, routing);
      RETURN_IF_ERROR(Annotate(pairs.status(), name));
      input.pairs.push_back(*std::move(pairs));
    }
  }
  ASSIGN_OR_RETURN(input.x, DecodeTensor(backend, "x", rows, shape.in, x));
  return input;
}

absl::StatusOr<BackwardInput> DecodeBackward(Backend& backend, const LayerShape& shape,
                                             int64_t rows, const v1::BackwardFrame& frame,
                                             const Pieces& dy) {
  BackwardInput input;
  ASSIGN_OR_RETURN(input.dy, DecodeTensor(backend, "dy", rows, shape.out, dy));
  if (!shape.hierarchical) {
    if (!frame.has_importance() && !frame.has_load()) return input;
    return Bad("has moments, but the layer is flat");
  }
  BalanceMoments& moments = input.moments.emplace();
  ASSIGN_OR_RETURN(moments.importance, DecodeMoments("importance", frame.has_importance(),
                                                     frame.importance()));
  ASSIGN_OR_RETURN(moments.load, DecodeMoments("load", frame.has_load(), frame.load()));
  return input;
}

absl::StatusOr<CloseInput> DecodeClose(const std::map<std::string, int64_t>& dense,
                                       const TableShapes& tables,
                                       std::span<const std::string> replica_shards,
                                       uint32_t replicas, v1::CloseRequest request) {
  CloseInput input;
  input.learning_rate = request.learning_rate();
  input.cut = request.cut();
  if (!std::isfinite(input.learning_rate) || input.learning_rate < 0) {
    return Bad("learning rate ", input.learning_rate, " is not a number from 0 on");
  }

  std::map<std::string, std::set<TreeNode>> found;
  const auto find = [&](const std::string& shard, TreeNode node) {
    if (found[shard].insert(node).second) return absl::OkStatus();
    return Bad("gradient of ", shard, " node (", node.level, ", ", node.index,
               ") comes twice");
  };
  for (const v1::GradientNode& node : request.gradients()) {
    ASSIGN_OR_RETURN(CloseInput::Gradient gradient, DecodeGradient(dense, node));
    RETURN_IF_ERROR(find(gradient.shard, gradient.node));
    input.gradients.push_back(std::move(gradient));
  }
  for (const v1::RowGradientNode& node : request.row_gradients()) {
    ASSIGN_OR_RETURN(RowGradient gradient, DecodeRowGradient(tables, node));
    RETURN_IF_ERROR(find(gradient.shard, gradient.node));
    input.row_gradients.push_back(std::move(gradient));
  }
  const std::vector<uint32_t> owned(request.replicas().begin(), request.replicas().end());
  const std::vector<TreeNode> maximal = MaximalNodes(owned, replicas);
  const std::set<TreeNode> nodes(maximal.begin(), maximal.end());
  std::vector<std::string> shards;
  for (const auto& [shard, size] : dense) shards.push_back(shard);
  for (const auto& [shard, shape] : tables) shards.push_back(shard);
  for (const std::string& shard : shards) {
    if (found[shard] != nodes) {
      return Bad("gradients of ", shard, " are not the maximal nodes of replicas ",
                 absl::StrJoin(owned, ","));
    }
  }

  for (v1::ShardContent& state : *request.mutable_replica_states()) {
    if (std::find(replica_shards.begin(), replica_shards.end(), state.shard()) ==
        replica_shards.end()) {
      return Bad("state of ", state.shard(), ": not a shard of the sender here");
    }
    if (!input.replica_states.emplace(state.shard(), std::move(*state.mutable_content()))
             .second) {
      return Bad("state of ", state.shard(), " comes twice");
    }
  }
  for (const std::string& shard : replica_shards) {
    if (!input.replica_states.contains(shard)) return Bad("no state of ", shard);
  }
  return input;
}

}  // namespace moe
