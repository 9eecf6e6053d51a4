#include "client/moectl/plan_view.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/moectl/memory_view.h"
#include "client/moectl/text_table.h"
#include "common/base/human.h"

namespace moe {
namespace {

constexpr auto kRight = TextTable::Align::kRight;

// A kind of bytes: what the table calls it, and JSON.
struct Kind {
  const char* title;
  const char* name;
  double StepBytes::*bytes;
};
constexpr Kind kToServers[] = {
    {"rows to experts", "activations_out", &StepBytes::activations_out},
    {"gradients of what comes back", "gradients_out", &StepBytes::gradients_out},
    {"dense gradients", "dense_gradients", &StepBytes::dense_gradients},
    {"gradients of tables", "table_gradients", &StepBytes::table_gradients},
    {"carried states", "carried_states", &StepBytes::carried_states},
    {"requests", "requests", &StepBytes::requests},
};
constexpr Kind kToWorkers[] = {
    {"experts' sums", "activations_back", &StepBytes::activations_back},
    {"gradients of rows", "gradients_back", &StepBytes::gradients_back},
    {"dense parameters", "dense_parameters", &StepBytes::dense_parameters},
    {"rows of tables", "table_rows", &StepBytes::table_rows},
    {"answers to closes", "answers", &StepBytes::answers},
};

std::string Bytes(double bytes) {
  return bytes == 0 ? "-" : FormatBytes(static_cast<uint64_t>(std::llround(bytes)));
}

std::string Seconds(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.0f us", 1e6 * seconds);
  if (seconds < 1) return absl::StrFormat("%.1f ms", 1e3 * seconds);
  if (seconds < 100) return absl::StrFormat("%.2f s", seconds);
  return FormatTimeSpan(absl::Seconds(seconds));
}

std::string Share(double part, double whole) {
  return absl::StrFormat("%.0f %%", whole > 0 ? 100 * part / whole : 0);
}

// "1 server", "3 servers"
std::string Many(size_t count, const char* what) {
  return absl::StrCat(FormatCount(static_cast<int64_t>(count)), " ", what,
                      count == 1 ? "" : "s");
}

double AllBytes(const HostCost& host) {
  return host.bytes.to_servers() + host.bytes.to_workers();
}

const HostCost& Most(const std::vector<HostCost>& hosts) {
  return *std::max_element(hosts.begin(), hosts.end(), [](const auto& a, const auto& b) {
    return AllBytes(a) < AllBytes(b);
  });
}

// What a step waits for, most first, without what is nothing.
std::vector<std::pair<Cause, double>> Waits(const CauseTimes& path) {
  std::vector<std::pair<Cause, double>> waits;
  for (int i = 0; i < kCauses; ++i) {
    const auto cause = static_cast<Cause>(i);
    if (path[cause] > 0) waits.emplace_back(cause, path[cause]);
  }
  std::stable_sort(waits.begin(), waits.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return waits;
}

std::string StepView(const Plan& plan) {
  const StepCost& cost = plan.cost;
  std::string text = absl::StrFormat(
      "%s on %s and %s: %s words a step\n\nA step takes %s: %s words/s. Most of it waits "
      "for "
      "%s.\n\n",
      plan.job, Many(plan.servers.size(), "server"), Many(plan.workers.size(), "worker"),
      FormatCount(std::llround(cost.tokens)), Seconds(cost.seconds),
      FormatCount(std::llround(cost.tokens_per_second())),
      CauseName(Waits(cost.path).front().first));
  TextTable table({{"A STEP WAITS FOR"}, {"TIME", kRight}, {"SHARE", kRight}});
  for (const auto& [cause, seconds] : Waits(cost.path)) {
    table.AddRow({CauseName(cause), Seconds(seconds), Share(seconds, cost.seconds)});
  }
  return text + table.ToString();
}

std::string BusyView(const Plan& plan) {
  TextTable table(std::vector<TextTable::Column>{{"A STEP OF THE BUSIEST"},
                                                 {"COMPUTES", kRight},
                                                 {"SHARE", kRight},
                                                 {"PACKS MESSAGES", kRight},
                                                 {"SHARE", kRight},
                                                 {"ITS NETWORK", kRight},
                                                 {"SHARE", kRight}});
  for (const auto& [name, hosts] : {std::pair("server", &plan.cost.servers),
                                    std::pair("worker", &plan.cost.workers)}) {
    HostCost most;
    for (const HostCost& host : *hosts) {
      most.computing = std::max(most.computing, host.computing);
      most.messages = std::max(most.messages, host.messages);
      most.network = std::max(most.network, host.network);
    }
    const double step = plan.cost.seconds;
    table.AddRow({name, Seconds(most.computing), Share(most.computing, step),
                  Seconds(most.messages), Share(most.messages, step),
                  Seconds(most.network), Share(most.network, step)});
  }
  return table.ToString();
}

std::string BytesView(const Plan& plan) {
  const HostCost& server = Most(plan.cost.servers);
  const HostCost& worker = Most(plan.cost.workers);
  StepBytes all;
  for (const HostCost& host : plan.cost.servers) all += host.bytes;
  TextTable table(std::vector<TextTable::Column>{
      {"BYTES A STEP"}, {"A SERVER", kRight}, {"A WORKER", kRight}, {"ALL", kRight}});
  const auto add = [&](const std::string& title, const auto& of) {
    table.AddRow(
        {title, Bytes(of(server.bytes)), Bytes(of(worker.bytes)), Bytes(of(all))});
  };
  const auto add_kinds = [&](std::span<const Kind> kinds) {
    for (const Kind& kind : kinds) {
      if (all.*kind.bytes == 0) continue;
      add(absl::StrCat("  ", kind.title),
          [&](const StepBytes& bytes) { return bytes.*kind.bytes; });
    }
  };
  add("from workers to servers",
      [](const StepBytes& bytes) { return bytes.to_servers(); });
  add_kinds(kToServers);
  add("from servers to workers",
      [](const StepBytes& bytes) { return bytes.to_workers(); });
  add_kinds(kToWorkers);
  return table.ToString();
}

std::string MemoryView(const Plan& plan) {
  MemoryTable table;
  for (const auto& [name, members] :
       {std::pair("server", &plan.servers), std::pair("worker", &plan.workers)}) {
    const auto [least, most] = std::minmax_element(
        members->begin(), members->end(),
        [&](const std::string& a, const std::string& b) {
          return plan.memory.at(a).total() < plan.memory.at(b).total();
        });
    const bool same = plan.memory.at(*least).total() == plan.memory.at(*most).total();
    table.Add(same ? absl::StrCat("a ", name) : absl::StrCat("the largest ", name),
              plan.memory.at(*most));
    if (!same) table.Add(absl::StrCat("the smallest ", name), plan.memory.at(*least));
  }
  return table.ToString();
}

Json KindsToJson(const StepBytes& bytes, std::span<const Kind> kinds) {
  Json json = Json::object();
  for (const Kind& kind : kinds) json[kind.name] = std::llround(bytes.*kind.bytes);
  return json;
}

Json HostToJson(const std::string& member, bool server, const HostCost& host,
                const MemoryNeed& need) {
  const Json up = KindsToJson(host.bytes, kToServers);
  const Json down = KindsToJson(host.bytes, kToWorkers);
  const int64_t to_servers = std::llround(host.bytes.to_servers());
  const int64_t to_workers = std::llround(host.bytes.to_workers());
  return {{"member", member},
          {"sent_bytes", server ? to_workers : to_servers},
          {"received_bytes", server ? to_servers : to_workers},
          {"sent", server ? down : up},
          {"received", server ? up : down},
          {"computing_seconds", host.computing},
          {"message_seconds", host.messages},
          {"network_seconds", host.network},
          {"memory", MemoryToJson(need)}};
}

Json SpeedToJson(const HostSpeed& speed) {
  return {{"flops", speed.flops},
          {"memory_bytes_per_second", speed.memory},
          {"message_bytes_per_second", speed.messages},
          {"nic_bytes_per_second", speed.nic}};
}

}  // namespace

std::string PlanView(const Plan& plan) {
  return absl::StrJoin(
      {StepView(plan), BusyView(plan), BytesView(plan), MemoryView(plan)}, "\n");
}

Json PlanToJson(const Plan& plan) {
  Json waits = Json::object();
  for (const auto& [cause, seconds] : Waits(plan.cost.path)) {
    waits[CauseName(cause)] = seconds;
  }
  Json members = Json::array();
  for (size_t s = 0; s < plan.servers.size(); ++s) {
    members.push_back(HostToJson(plan.servers[s], /*server=*/true, plan.cost.servers[s],
                                 plan.memory.at(plan.servers[s])));
  }
  for (size_t w = 0; w < plan.workers.size(); ++w) {
    members.push_back(HostToJson(plan.workers[w], /*server=*/false, plan.cost.workers[w],
                                 plan.memory.at(plan.workers[w])));
  }
  return {{"name", plan.job},
          {"servers", plan.servers.size()},
          {"workers", plan.workers.size()},
          {"speed",
           {{"server", SpeedToJson(plan.speed.server)},
            {"worker", SpeedToJson(plan.speed.worker)},
            {"latency_seconds", plan.speed.latency},
            {"threads", plan.speed.threads}}},
          {"words", std::llround(plan.cost.tokens)},
          {"seconds", plan.cost.seconds},
          {"words_per_second", plan.cost.tokens_per_second()},
          {"limit", CauseName(Waits(plan.cost.path).front().first)},
          {"waits_for", std::move(waits)},
          {"members", std::move(members)}};
}

}  // namespace moe
