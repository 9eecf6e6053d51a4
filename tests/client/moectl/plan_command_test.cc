#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "client/moectl/command.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Result {
  int exit_status;
  std::string out;
  std::string err;
};

// `moectl plan` for a small job of 4 replicas and 8 groups of experts, with these flags besides.
Result Plan(std::vector<std::string> flags) {
  const std::string path = testing::TempDir() + "/job.textproto";
  std::ofstream(path) << R"pb(
    name: "planned"
    seed: 1
    model {
      d_model: 64
      vocabulary: 1000
      layers { lstm { hidden: 64 } }
      layers {
        moe { experts: 512 k: 2 hidden: 2048 groups: 8 gating: GATING_NOISY_TOP_K }
      }
    }
    optimizer {
      adam {}
      schedule {
        base_rate: 0.1
        constant {}
      }
    }
    training { replicas: 4 waves: 2 lanes: 16 unroll: 8 steps: 10 }
  )pb";
  flags.insert(flags.begin(), {"plan", "--job", path});
  std::ostringstream out;
  std::ostringstream err;
  const int exit_status = RunMoectl(flags, out, err);
  return {exit_status, out.str(), err.str()};
}

nlohmann::json PlanJson(std::vector<std::string> flags) {
  flags.push_back("--json");
  const Result result = Plan(std::move(flags));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  return nlohmann::json::parse(result.out);
}

TEST(PlanCommand, TellsTimeBytesAndMemory) {
  const Result result = Plan({"--servers=2", "--workers=1"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_THAT(result.out,
              HasSubstr("planned on 2 servers and 1 worker: 512 words a step"));
  for (const std::string what :
       {"A step takes ", "words/s. Most of it waits for ", "\nA STEP WAITS FOR ",
        "\nA STEP OF THE BUSIEST ", "\nBYTES A STEP ", "\n  rows to experts ",
        "\n  dense parameters ", "\nMEMORY ", "server ", "\na worker "}) {
    EXPECT_THAT(result.out, HasSubstr(what));
  }
  EXPECT_THAT(result.out, Not(HasSubstr("tables")));
}

TEST(PlanCommand, JsonAddsUp) {
  const auto json = PlanJson({"--servers=2", "--workers=3"});
  EXPECT_EQ(json["words"], 512);
  EXPECT_NEAR(json["words_per_second"].get<double>() * json["seconds"].get<double>(), 512,
              1e-6);
  double waits = 0;
  for (const auto& [cause, seconds] : json["waits_for"].items())
    waits += seconds.get<double>();
  EXPECT_NEAR(waits, json["seconds"].get<double>(), 1e-9);
  EXPECT_TRUE(json["waits_for"].contains(json["limit"].get<std::string>()));

  ASSERT_EQ(json["members"].size(), 5u);
  // What servers send workers receive.
  int64_t sent = 0;
  int64_t received = 0;
  for (const auto& member : json["members"]) {
    int64_t of_kinds = 0;
    for (const auto& [kind, bytes] : member["sent"].items())
      of_kinds += bytes.get<int64_t>();
    EXPECT_NEAR(member["sent_bytes"].get<double>(), static_cast<double>(of_kinds), 6);
    sent += member["sent_bytes"].get<int64_t>();
    received += member["received_bytes"].get<int64_t>();
  }
  EXPECT_NEAR(static_cast<double>(sent), static_cast<double>(received), 10);
  EXPECT_EQ(json["members"][0]["member"], "server/s0");
  EXPECT_EQ(json["members"][4]["member"], "worker/w2");
}

TEST(PlanCommand, MemoryIsWhatDescribeSays) {
  const std::vector<std::string> cluster = {"--servers=3", "--workers=2", "--threads=2",
                                            "--activation_gib=0.001", "--copy_gib=0.1"};
  const auto plan = PlanJson(cluster);
  std::vector<std::string> describe = cluster;
  describe.insert(describe.begin(),
                  {"describe", "--json", "--job", testing::TempDir() + "/job.textproto"});
  std::ostringstream out;
  std::ostringstream err;
  ASSERT_EQ(RunMoectl(describe, out, err), 0) << err.str();
  const auto described = nlohmann::json::parse(out.str())["memory"];
  ASSERT_EQ(described.size(), plan["members"].size());
  for (size_t i = 0; i < described.size(); ++i) {
    auto expected = described[i];
    EXPECT_EQ(plan["members"][i]["member"], expected["member"]);
    expected.erase("member");
    EXPECT_EQ(plan["members"][i]["memory"], expected);
  }
}

TEST(PlanCommand, FasterHostsTakeLess) {
  const auto seconds = [](std::vector<std::string> flags) {
    flags.insert(flags.end(), {"--servers=2", "--workers=2"});
    return PlanJson(flags)["seconds"].get<double>();
  };
  const double slow = seconds({"--gflops=1", "--nic=100G"});
  EXPECT_LT(seconds({"--gflops=10", "--nic=100G"}), 0.2 * slow);
  EXPECT_LT(seconds({"--gflops=1", "--worker_gflops=10", "--nic=100G"}), slow);
  EXPECT_LT(seconds({"--gflops=1", "--server_gflops=10", "--nic=100G"}), slow);
  EXPECT_GT(seconds({"--gflops=1", "--nic=100G", "--latency=1s"}), slow + 1);
  EXPECT_GT(seconds({"--gflops=1", "--nic=100G", "--memory_gbps=0.01"}), slow);
  EXPECT_GT(seconds({"--gflops=1", "--nic=100G", "--message_gbps=0.001"}), slow);
}

TEST(PlanCommand, BitsOfANetworkHaveUnits) {
  const auto nic = [](const std::string& value) {
    return PlanJson({"--servers=1", "--workers=1",
                     "--nic=" + value})["speed"]["server"]["nic_bytes_per_second"]
        .get<double>();
  };
  EXPECT_EQ(nic("8000"), 1000);
  EXPECT_EQ(nic("8k"), 1000);
  EXPECT_EQ(nic("10M"), 1.25e6);
  EXPECT_EQ(nic("2.5G"), 312.5e6);
  EXPECT_EQ(nic("1T"), 125e9);
  for (const std::string wrong : {"25X", "G", "", "0", "-1G", "fast", "nanG"}) {
    const Result result = Plan({"--servers=1", "--workers=1", "--nic", wrong});
    EXPECT_EQ(result.exit_status, 1) << wrong;
    EXPECT_THAT(result.err,
                HasSubstr("--nic is '" + wrong + "'; it must be bits a second"));
  }
}

TEST(PlanCommand, WhatDoesNotFitSaysWhatWould) {
  // 512 experts of 1 MiB with two moments: 1.5 GiB, in 8 groups.
  const Result result = Plan({"--servers=1", "--workers=1", "--memory_gib=1"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err, HasSubstr("the job planned doesn't fit. server/s0 needs "));
  EXPECT_THAT(result.err, HasSubstr(" more than the 1.0 GiB of --memory_gib: "));
  const size_t at = result.err.find("--memory_gib: ");
  const std::string fewest = std::to_string(std::stoi(result.err.substr(at + 14)));
  EXPECT_THAT(result.err, HasSubstr(": " + fewest + " servers would do"));
  // So many do, and one fewer don't.
  EXPECT_EQ(Plan({"--servers", fewest, "--workers=1", "--memory_gib=1"}).exit_status, 0);
  EXPECT_EQ(Plan({"--servers", std::to_string(std::stoi(fewest) - 1), "--workers=1",
                  "--memory_gib=1"})
                .exit_status,
            1);
  const Result never = Plan({"--servers=1", "--workers=1", "--memory_gib=0.01"});
  EXPECT_THAT(never.err,
              HasSubstr("no number of servers would do, as a server has at least "
                        "one group of experts"));
  EXPECT_THAT(never.err, HasSubstr("; and worker/w0 needs "));
}

TEST(PlanCommand, HelpTellsDefaultsButOfWhatIsRequired) {
  const std::string help = Plan({"--help"}).out;
  EXPECT_THAT(help, HasSubstr("  --servers N\n      Servers. Required.\n"));
  for (const std::string flag :
       {"nic", "latency", "gflops", "memory_gbps", "message_gbps"}) {
    const size_t at = help.find("  --" + flag + " ");
    ASSERT_NE(at, std::string::npos) << flag;
    const size_t end = help.find("\n  --", at);
    EXPECT_THAT(help.substr(at, end - at), HasSubstr(" Default: ")) << flag;
  }
}

TEST(PlanCommand, RefusesWhatMakesNoSense) {
  const auto refusal = [](std::vector<std::string> flags) {
    const Result result = Plan(std::move(flags));
    EXPECT_NE(result.exit_status, 0);
    EXPECT_EQ(result.out, "");
    return result.err;
  };
  EXPECT_THAT(refusal({"--workers=1"}), HasSubstr("--servers N is missing"));
  EXPECT_THAT(refusal({"--servers=1"}), HasSubstr("--workers N is missing"));
  EXPECT_THAT(refusal({"--servers=0", "--workers=1"}),
              HasSubstr("--servers is '0'; it must be a whole number of at least 1"));
  EXPECT_THAT(refusal({"--servers=1", "--workers=5"}),
              HasSubstr("--workers is 5, and the job's training.replicas is 4"));
  EXPECT_THAT(refusal({"--servers=1", "--workers=1", "--gflops=0"}),
              HasSubstr("--gflops is 0; it must be greater"));
  EXPECT_THAT(refusal({"--servers=1", "--workers=1", "--latency=-1ms"}),
              HasSubstr("--latency is '-1ms'"));
}

}  // namespace
}  // namespace moe
