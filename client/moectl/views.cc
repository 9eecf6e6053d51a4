#include "client/moectl/views.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "client/moectl/text_table.h"
#include "common/base/human.h"
#include "common/job/mixtures.h"

namespace moe {
namespace {

using Column = TextTable::Column;
constexpr auto kRight = TextTable::Align::kRight;

std::string Count(uint64_t count) { return FormatCount(static_cast<int64_t>(count)); }

std::string ModeName(const v1::ClusterState& state) {
  if (state.mode() == v1::RUN_MODE_TRAIN) return "training";
  if (state.mode() != v1::RUN_MODE_EVALUATE) return "";
  return state.evaluate_split() == v1::SPLIT_VALIDATION
             ? "evaluation on the validation text"
             : "evaluation on the test text";
}

void Line(std::string* text, const std::string& label, const std::string& value) {
  absl::StrAppend(text, absl::StrFormat("%-12s", label), value, "\n");
}

std::string Share(double part, double all) {
  return absl::StrFormat("%.0f %%", 100 * part / all);
}

// "needs 1.2 GiB of 20.3 GiB"
std::string Memory(const v1::MemberStatus& member) {
  const std::string has =
      member.memory_bytes() == 0 ? "?" : FormatBytes(member.memory_bytes());
  if (member.memory_need_bytes() == 0) return has;
  return absl::StrCat("needs ", FormatBytes(member.memory_need_bytes()), " of ", has);
}

}  // namespace

std::string PhaseName(v1::Phase phase) {
  const std::string name = v1::Phase_Name(phase);
  const std::string prefix = "PHASE_";
  return name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : "UNKNOWN";
}

std::string SharesOfTime(const v1::MemberTimes& times) {
  const double all = times.computing() + times.waiting() + times.moving();
  if (!(all > 0)) return "";
  return absl::StrCat("computing ", Share(times.computing(), all), ", waiting ",
                      Share(times.waiting(), all), ", moving ",
                      Share(times.moving(), all));
}

std::string StatusView(const v1::GetClusterStatusResponse& status) {
  const v1::ClusterState& state = status.state();
  const v1::Progress& progress = status.progress();
  std::string text;
  std::string job = state.has_job() ? state.job().name() : "-";
  if (const std::string mode = ModeName(state); !mode.empty())
    absl::StrAppend(&job, ", ", mode);
  Line(&text, "job", job);
  Line(&text, "phase",
       absl::StrCat(PhaseName(state.phase()), ", generation ", state.generation()));
  if (!state.recovery().empty()) Line(&text, "since", state.recovery());
  if (!state.failure().empty()) Line(&text, "failure", state.failure());
  if (!state.without_standby().empty()) {
    Line(&text, "standby", state.without_standby());
  }
  if (!state.waiting_for().empty()) {
    // "waiting for 1 of 2 servers"
    Line(&text, "waiting for",
         std::string(absl::StripPrefix(state.waiting_for(), "waiting for ")));
  }
  if (progress.total_steps() > 0) {
    std::string step =
        absl::StrCat(Count(progress.step()), " of ", Count(progress.total_steps()));
    if (progress.words_per_second() > 0) {
      absl::StrAppend(&step,
                      absl::StrFormat(", %.0f words/s", progress.words_per_second()));
    }
    if (progress.seconds_left() > 0) {
      absl::StrAppend(&step, ", ", FormatTimeSpan(absl::Seconds(progress.seconds_left())),
                      " left");
    }
    Line(&text, "step", step);
  }
  std::vector<std::string> perplexities;
  const auto perplexity = [&](const char* split, double value) {
    if (value > 0) perplexities.push_back(absl::StrFormat("%s %.2f", split, value));
  };
  perplexity("train", progress.train_perplexity());
  perplexity("validation", progress.validation_perplexity());
  perplexity("test", progress.test_perplexity());
  if (!perplexities.empty()) {
    std::string joined;
    for (const std::string& p : perplexities) {
      absl::StrAppend(&joined, joined.empty() ? "" : ", ", p);
    }
    Line(&text, "perplexity", joined);
  }
  if (progress.learning_rate() > 0) {
    Line(&text, "rate", absl::StrFormat("%.3g", progress.learning_rate()));
  }
  for (const v1::BalanceStatus& balance : progress.balance()) {
    Line(&text, MixtureName(balance.layer(), balance.mixture()),
         absl::StrFormat(
             "CV(importance) %.3f, CV(load) %.3f, most loaded expert %.2f times the "
             "mean",
             balance.cv_importance(), balance.cv_load(), balance.max_over_mean_load()));
    if (balance.unrouted_share() > 0) {
      Line(&text, "",
           absl::StrFormat("%.2f experts for a token, none for %.1f %%",
                           balance.experts_per_token(), 100 * balance.unrouted_share()));
    }
  }
  int servers = 0;
  int workers = 0;
  for (const v1::MemberStatus& member : status.members()) {
    servers += member.kind() == v1::MEMBER_KIND_SERVER;
    workers += member.kind() == v1::MEMBER_KIND_WORKER;
  }
  Line(&text, "members",
       absl::StrFormat("%d server%s, %d worker%s", servers, servers == 1 ? "" : "s",
                       workers, workers == 1 ? "" : "s"));
  if (status.has_cut()) {
    Line(&text, "checkpoint",
         absl::StrCat("of step ", status.cut().step(), " under way for ",
                      FormatTimeSpan(absl::Seconds(status.cut().seconds())),
                      ", waits for ", status.cut().waiting_for()));
  }
  if (status.checkpoints().empty()) return text;

  TextTable table(std::vector<Column>{{"CHECKPOINT"},
                                      {"STEP", kRight},
                                      {"VALIDATION", kRight},
                                      {"", TextTable::Align::kLeft},
                                      {"DIGEST"}});
  for (const v1::CheckpointStatus& checkpoint : status.checkpoints()) {
    table.AddRow({checkpoint.folder(), Count(checkpoint.step()),
                  checkpoint.validation_perplexity() > 0
                      ? absl::StrFormat("%.2f", checkpoint.validation_perplexity())
                      : "-",
                  absl::StrCat(checkpoint.best() ? "best" : "",
                               checkpoint.best() && checkpoint.last() ? " " : "",
                               checkpoint.last() ? "last" : ""),
                  checkpoint.digest()});
  }
  absl::StrAppend(&text, "\n", table.ToString());
  return text;
}

std::string MembersView(const v1::GetClusterStatusResponse& status) {
  TextTable table(std::vector<Column>{{"MEMBER"},
                                      {"HOST"},
                                      {"PID", kRight},
                                      {"ADDRESS"},
                                      {"HEARD", kRight},
                                      {"MEMORY"},
                                      {"TIME"},
                                      {"WAITING FOR"}});
  for (const v1::MemberStatus& member : status.members()) {
    const std::string shares = SharesOfTime(member.times());
    table.AddRow({member.member(), member.host(), absl::StrCat(member.pid()),
                  member.address().empty() ? "-" : member.address(),
                  absl::StrFormat("%.1f s ago", member.seconds_since_heartbeat()),
                  Memory(member), shares.empty() ? "-" : shares,
                  member.waiting_for().empty() ? "-" : member.waiting_for()});
  }
  return table.ToString();
}

namespace {

// Of the shards of tables; empty without any.
std::string TableRowsView(std::span<const ServerReport> reports) {
  TextTable table(std::vector<Column>{{"TABLE"},
                                      {"SERVER"},
                                      {"ROWS PULLED", kRight},
                                      {"PUSHED", kRight},
                                      {"PULLED TO EVALUATE", kRight},
                                      {"TOUCHED", kRight}});
  bool any = false;
  for (const ServerReport& report : reports) {
    if (!report.status.ok()) continue;
    for (const v1::ShardStatus& shard : report.status->shards()) {
      if (!absl::StrContains(shard.shard(), "/rows")) continue;
      any = true;
      table.AddRow({shard.shard(), report.server.server(), Count(shard.rows_pulled()),
                    Count(shard.rows_pushed()), Count(shard.evaluation_rows_pulled()),
                    Count(shard.rows_touched())});
    }
  }
  return any ? absl::StrCat("\n", table.ToString()) : "";
}

}  // namespace

std::string ShardsView(std::span<const ServerReport> reports) {
  TextTable table(std::vector<Column>{{"SHARD"},
                                      {"SERVER"},
                                      {"VERSION", kRight},
                                      {"EXPERTS", kRight},
                                      {"ROWS OF STEP", kRight},
                                      {"PARAMETERS", kRight},
                                      {"OPTIMIZER", kRight},
                                      {"ON DISK", kRight},
                                      {"UNTOUCHED", kRight}});
  const auto bytes_or_none = [](uint64_t bytes) {
    return bytes == 0 ? "-" : FormatBytes(bytes);
  };
  for (const ServerReport& report : reports) {
    if (!report.status.ok()) continue;
    for (const v1::ShardStatus& shard : report.status->shards()) {
      uint64_t rows = 0;
      for (const v1::ExpertStatus& expert : shard.experts()) rows += expert.last_rows();
      const bool experts = shard.experts_size() > 0;
      table.AddRow(
          {shard.shard(), report.server.server(), absl::StrCat(shard.version()),
           experts ? Count(shard.experts_size()) : "-", experts ? Count(rows) : "-",
           FormatBytes(shard.parameter_bytes()), FormatBytes(shard.optimizer_bytes()),
           bytes_or_none(shard.mapped_bytes()), bytes_or_none(shard.untouched_bytes())});
    }
  }
  std::string text = absl::StrCat(table.ToString(), TableRowsView(reports));
  for (const ServerReport& report : reports) {
    if (!report.status.ok() || report.status->disk_limit_bytes() == 0) continue;
    absl::StrAppend(&text, report.server.server(), " has ",
                    FormatBytes(report.status->disk_bytes()), " of the ",
                    FormatBytes(report.status->disk_limit_bytes()),
                    " that experts may take of its disk\n");
  }
  for (const ServerReport& report : reports) {
    if (!report.status.ok() || report.status->writing().empty()) continue;
    absl::StrAppend(&text, report.server.server(), " writes ", report.status->writing(),
                    ", and has ", FormatBytes(report.status->copied_bytes()), " of the ",
                    FormatBytes(report.status->copy_limit_bytes()),
                    " that copies of what has changed since may take\n");
  }
  return text;
}

std::vector<LayerLoad> LayerLoads(std::span<const ServerReport> reports) {
  // Of a shard with two copies the first that there is.
  std::set<std::string> seen;
  std::map<std::pair<uint32_t, std::string>, LayerLoad> layers;
  for (const ServerReport& report : reports) {
    if (!report.status.ok()) continue;
    for (const v1::ShardStatus& shard : report.status->shards()) {
      if (!seen.insert(shard.shard()).second) continue;
      for (const v1::ExpertStatus& expert : shard.experts()) {
        LayerLoad& layer = layers[{expert.layer(), expert.mixture()}];
        layer.experts.push_back(
            {.expert = expert, .shard = shard.shard(), .server = report.server.server()});
        layer.rows += expert.last_rows();
        layer.max_rows = std::max(layer.max_rows, expert.last_rows());
        layer.idle += expert.last_rows() == 0;
      }
    }
  }
  std::vector<LayerLoad> loads;
  for (auto& [id, layer] : layers) {
    layer.layer = id.first;
    layer.mixture = id.second;
    if (layer.rows > 0) {
      layer.max_over_mean = static_cast<double>(layer.max_rows) *
                            static_cast<double>(layer.experts.size()) /
                            static_cast<double>(layer.rows);
    }
    std::sort(layer.experts.begin(), layer.experts.end(),
              [](const ExpertRow& a, const ExpertRow& b) {
                if (a.expert.last_rows() != b.expert.last_rows()) {
                  return a.expert.last_rows() > b.expert.last_rows();
                }
                return a.expert.expert() < b.expert.expert();
              });
    loads.push_back(std::move(layer));
  }
  return loads;
}

std::string ExpertsView(std::span<const LayerLoad> layers, int top) {
  std::string text;
  for (const LayerLoad& layer : layers) {
    absl::StrAppend(
        &text, text.empty() ? "" : "\n",
        absl::StrFormat(
            "%s: %s experts, %s rows in the last step, most loaded %.2f times "
            "the mean, %s without a row\n",
            MixtureName(layer.layer, layer.mixture), Count(layer.experts.size()),
            Count(layer.rows), layer.max_over_mean, Count(layer.idle)));
    TextTable table(std::vector<Column>{{"EXPERT", kRight},
                                        {"ROWS OF STEP", kRight},
                                        {"SHARE", kRight},
                                        {"ROWS IN ALL", kRight},
                                        {"UPDATES", kRight},
                                        {"SHARD"},
                                        {"SERVER"}});
    size_t shown = layer.experts.size();
    if (top > 0) shown = std::min(shown, static_cast<size_t>(top));
    for (size_t i = 0; i < shown; ++i) {
      const ExpertRow& row = layer.experts[i];
      const double share = layer.rows == 0
                               ? 0
                               : 100 * static_cast<double>(row.expert.last_rows()) /
                                     static_cast<double>(layer.rows);
      table.AddRow({absl::StrCat(row.expert.expert()), Count(row.expert.last_rows()),
                    absl::StrFormat("%.1f %%", share), Count(row.expert.total_rows()),
                    Count(row.expert.updates()), row.shard, row.server});
    }
    absl::StrAppend(&text, table.ToString());
  }
  return text;
}

}  // namespace moe
