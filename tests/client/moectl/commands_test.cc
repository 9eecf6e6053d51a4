#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/moectl/command.h"
#include "common/checkpoint/manifest.h"
#include "common/io/sha256.h"
#include "common/net/rpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/moe/v1/status.grpc.pb.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Result {
  int exit_status;
  std::string out;
  std::string err;
};

Result Moectl(std::vector<std::string> arguments) {
  std::ostringstream out;
  std::ostringstream err;
  const int exit_status = RunMoectl(arguments, out, err);
  return {exit_status, out.str(), err.str()};
}

TEST(Moectl, HelpListsEveryCommand) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{}, {"help"}, {"--help"}, {"-h"}}) {
    const Result result = Moectl(arguments);
    EXPECT_EQ(result.exit_status, 0);
    for (const auto& command : MakeCommands()) {
      EXPECT_THAT(result.out, HasSubstr("\n  " + command->name() + " "));
    }
  }
}

TEST(Moectl, EveryCommandHasHelpWithItsFlags) {
  for (const auto& command : MakeCommands()) {
    const Result result = Moectl({command->name(), "--help"});
    EXPECT_EQ(result.exit_status, 0);
    EXPECT_THAT(result.out, StartsWith("moectl " + command->name() + ": "));
    EXPECT_THAT(result.out, HasSubstr("Usage: moectl " + command->name()));
    EXPECT_THAT(result.out, HasSubstr("Example: moectl " + command->name()));
    EXPECT_THAT(result.out, HasSubstr("  --json\n"));
    EXPECT_EQ(Moectl({"help", command->name()}).out, result.out);
  }
}

TEST(Moectl, WrongCommandLinesExitWithTwo) {
  Result result = Moectl({"stats"});
  EXPECT_EQ(result.exit_status, 2);
  EXPECT_THAT(result.err, HasSubstr("unknown command 'stats'"));
  result = Moectl({"status", "--jason"});
  EXPECT_EQ(result.exit_status, 2);
  EXPECT_THAT(result.err, HasSubstr("unknown flag '--jason'"));
  EXPECT_EQ(Moectl({"eval", "--checkpoint", "x"}).exit_status, 2);
  EXPECT_EQ(Moectl({"describe"}).exit_status, 2);
}

TEST(Moectl, AnUnreachableCoordinatorIsNamed) {
  // Nothing listens there.
  const std::string address = "unix:/nonexistent/nobody";
  for (const std::string command : {"status", "members", "shards", "experts", "digest"}) {
    const Result result = Moectl({command, "--coordinator", address, "--timeout", "2s"});
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, StartsWith("moectl " + command +
                                       ": can't reach the coordinator at " + address));
  }
  EXPECT_EQ(Moectl({"top", "--once", "--coordinator", address}).exit_status, 1);
}

TEST(Moectl, TheEnvironmentNamesTheCoordinator) {
  const std::string address = "unix:/nonexistent/environment";
  ASSERT_EQ(setenv("MOE_COORDINATOR", address.c_str(), 1), 0);
  const Result result = Moectl({"status"});
  ASSERT_EQ(unsetenv("MOE_COORDINATOR"), 0);
  EXPECT_THAT(result.err, HasSubstr(address));
}

TEST(Moectl, DescribeCountsAJob) {
  const std::string path = testing::TempDir() + "/job.textproto";
  std::ofstream(path) << R"pb(
    name: "counted"
    seed: 1
    model {
      d_model: 4
      layers { lstm { hidden: 4 } }
      layers { moe { experts: 6 k: 2 hidden: 5 groups: 2 gating: GATING_NOISY_TOP_K } }
    }
    optimizer {
      sgd {}
      schedule {
        base_rate: 0.1
        constant {}
      }
    }
    training { replicas: 1 waves: 1 lanes: 1 unroll: 4 steps: 10 }
  )pb";
  const Result text = Moectl({"describe", "--job", path});
  ASSERT_EQ(text.exit_status, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("layer1.moe          288"));
  EXPECT_THAT(text.out, HasSubstr("experts                      240       4.000"));
  const Result result = Moectl({"describe", "--job", path, "--vocabulary=10", "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["layers"][1]["parameters"], 6 * 2 * 4 * 5 + 2 * 4 * 6);
  EXPECT_EQ(json["layers"][1]["multiply_adds"], 2 * 2 * 4 * 5 + 2 * 4 * 6);
  EXPECT_EQ(json["embedding_parameters"], 40);
  EXPECT_EQ(json["softmax_parameters"], 50);
  EXPECT_EQ(json["stored"]["experts"]["parameters"], 240);
  EXPECT_EQ(json["stored"]["experts"]["parameter_bytes"], 4 * 240);
  EXPECT_EQ(json["stored"]["experts"]["optimizer_bytes"], 0);
  EXPECT_EQ(json["stored"]["experts"]["bytes_per_parameter"], 4);
  EXPECT_EQ(json["stored"]["dense"]["parameter_bytes"], 4 * (144 + 48 + 40 + 50));
  EXPECT_FALSE(json.contains("memory"));

  const Result memory = Moectl({"describe", "--job", path, "--vocabulary=10",
                                "--servers=11", "--workers=1", "--json"});
  ASSERT_EQ(memory.exit_status, 0) << memory.err;
  const auto members = nlohmann::json::parse(memory.out)["memory"];
  ASSERT_EQ(members.size(), 12u);
  EXPECT_EQ(members[0]["member"], "server/s00");
  EXPECT_EQ(members[10]["member"], "server/s10");
  EXPECT_EQ(members[11]["member"], "worker/w0");
  int64_t parameters = 0;
  for (const auto& member : members) {
    int64_t sum = 0;
    for (const auto& [part, bytes] : member.items()) {
      if (part != "member" && part != "total") sum += bytes.get<int64_t>();
    }
    EXPECT_EQ(member["total"], sum);
    if (member["member"] != "worker/w0")
      parameters += member["parameters"].get<int64_t>();
  }
  // Of the model, and c and h of one lane.
  EXPECT_EQ(parameters, 4 * (288 + 40 + 50 + 4 * 4 * 8 + 4 * 4) + 4 * 2 * 4);

  const Result twice = Moectl({"describe", "--job", path, "--vocabulary=10",
                               "--servers=11", "--copies=2", "--json"});
  ASSERT_EQ(twice.exit_status, 0) << twice.err;
  int64_t of_both = 0;
  const auto with_both = nlohmann::json::parse(twice.out)["memory"];
  for (const auto& member : with_both) {
    if (member["member"] != "worker/w0") of_both += member["parameters"].get<int64_t>();
  }
  EXPECT_EQ(of_both, 2 * parameters);
}

TEST(Moectl, DescribeKnowsWhatServersKeepElsewhere) {
  const std::string path = testing::TempDir() + "/large-experts.textproto";
  std::ofstream(path) << R"pb(
    name: "job"
    seed: 1
    model {
      d_model: 64
      vocabulary: 10
      layers {
        moe { experts: 16 k: 2 hidden: 4096 groups: 4 gating: GATING_NOISY_TOP_K }
      }
    }
    optimizer {
      sgd {}
      schedule {
        base_rate: 1
        constant {}
      }
    }
    training { replicas: 1 waves: 1 lanes: 64 unroll: 64 steps: 1 }
  )pb";
  const auto server = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {"describe",    "--job",       path,
                                          "--servers=1", "--threads=1", "--json"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Result result = Moectl(arguments);
    EXPECT_EQ(result.exit_status, 0) << result.err;
    return nlohmann::json::parse(result.out)["memory"][0];
  };
  const auto all = server({});
  const auto disk = server({"--disk"});
  // 16 experts of two matrices.
  EXPECT_GE(all["parameters"].get<int64_t>() - disk["parameters"].get<int64_t>(),
            int64_t{16} * 2 * 4 * 64 * 4096);
  EXPECT_EQ(disk["activations"], all["activations"]);
  // The hidden activations of one group of four at a time.
  const auto again = server({"--activation_gib=0.001"});
  EXPECT_LT(again["activations"].get<int64_t>(), all["activations"].get<int64_t>());
  EXPECT_EQ(again["parameters"], all["parameters"]);

  for (const std::string flag :
       {"--disk", "--activation_gib=1", "--threads=2", "--copies=2"}) {
    const Result result = Moectl({"describe", "--job", path, flag});
    EXPECT_NE(result.exit_status, 0) << flag;
    EXPECT_THAT(result.err, AllOf(HasSubstr(flag.substr(0, flag.find('='))),
                                  HasSubstr("give --servers N or --workers N")));
  }
  EXPECT_THAT(Moectl({"describe", "--job", path, "--activation_gib=-1"}).err,
              HasSubstr("--activation_gib is '-1'; it must be a number of at least 0"));
}

TEST(Moectl, DescribeRefusesWhatMakesNoCluster) {
  const std::string path = testing::TempDir() + "/words-of-the-data.textproto";
  std::ofstream(path) << R"pb(
    name: "job"
    model {
      d_model: 4
      layers { lstm { hidden: 4 } }
    }
    optimizer {
      sgd {}
      schedule { base_rate: 0.1 }
    }
    training { replicas: 2 waves: 1 lanes: 1 unroll: 4 steps: 10 }
  )pb";
  const auto error = [&](const std::string& flag) {
    const Result result = Moectl({"describe", "--job", path, flag});
    EXPECT_NE(result.exit_status, 0) << flag;
    return result.err;
  };
  EXPECT_THAT(error("--servers=1"), HasSubstr("give --vocabulary"));
  EXPECT_THAT(error("--servers=-1"), HasSubstr("--servers is '-1'"));
  EXPECT_THAT(error("--workers=200000"),
              HasSubstr("--workers is 200000; it must be at most"));
  EXPECT_THAT(error("--workers=3"), HasSubstr("training.replicas is 2"));
  for (const char* copies : {"--copies=2", "--copies=3"}) {
    const Result result =
        Moectl({"describe", "--job", path, "--vocabulary=10", "--servers=1", copies});
    EXPECT_NE(result.exit_status, 0);
    EXPECT_THAT(result.err, HasSubstr("at least 2 --servers"));
  }
}

// A cluster of one coordinator and two servers that only answer questions.
class FakeCluster : public v1::ClusterStatusService::Service {
 public:
  class Server : public v1::ServerStatusService::Service {
   public:
    explicit Server(int number) : number_(number) {
      grpc::Service* const services[] = {this};
      server_ = std::move(RpcServer::Start("127.0.0.1:0", services).value());
    }
    ~Server() override { Shutdown(); }
    void Shutdown() { server_->Shutdown(absl::ZeroDuration()); }
    const std::string& address() const { return server_->address(); }

    grpc::Status GetServerStatus(grpc::ServerContext*, const v1::GetServerStatusRequest*,
                                 v1::GetServerStatusResponse* response) override {
      response->set_server("server/s" + std::to_string(number_));
      response->set_waiting_for("worker/w0");
      response->set_waiting_seconds(1.5);
      v1::ShardStatus& shard = *response->add_shards();
      shard.set_shard("layer1/group" + std::to_string(number_));
      v1::ExpertStatus& expert = *shard.add_experts();
      expert.set_layer(1);
      expert.set_expert(number_);
      expert.set_last_rows(10 * number_);
      return grpc::Status::OK;
    }
    grpc::Status GetTensorDigests(grpc::ServerContext*,
                                  const v1::GetTensorDigestsRequest*,
                                  v1::GetTensorDigestsResponse* response) override {
      // Server 1 lags behind at first.
      response->set_version(number_ == 1 && asked_++ < lag ? 4 : 5);
      v1::TensorDigest& tensor = *response->add_tensors();
      tensor.set_tensor(1 - number_);
      tensor.set_name("tensor" + std::to_string(1 - number_));
      tensor.set_sha256(Sha256Hex(std::to_string(1 - number_)));
      return grpc::Status::OK;
    }

    int lag = 2;

   private:
    const int number_;
    int asked_ = 0;
    std::unique_ptr<RpcServer> server_;
  };

  FakeCluster() {
    grpc::Service* const services[] = {this};
    server_ = std::move(RpcServer::Start("127.0.0.1:0", services).value());
  }
  ~FakeCluster() override { server_->Shutdown(absl::ZeroDuration()); }

  grpc::Status GetClusterStatus(grpc::ServerContext*, const v1::GetClusterStatusRequest*,
                                v1::GetClusterStatusResponse* response) override {
    response->mutable_state()->set_phase(v1::PHASE_RUNNING);
    for (int s = 0; s < 2; ++s) {
      const std::string id = "server/s" + std::to_string(s);
      v1::ServerAddress& address = *response->mutable_state()->add_servers();
      address.set_server(id);
      address.set_address(servers_[s].address());
      v1::ShardPlacement& shard =
          *response->mutable_state()->mutable_placement()->add_shards();
      shard.set_shard("layer1/group" + std::to_string(s));
      shard.set_server(id);
      response->add_members()->set_member(id);
    }
    return grpc::Status::OK;
  }

  Result Ask(std::vector<std::string> arguments) {
    arguments.push_back("--coordinator=" + server_->address());
    return Moectl(std::move(arguments));
  }
  Server& server(int s) { return servers_[s]; }

 private:
  Server servers_[2] = {Server(0), Server(1)};
  std::unique_ptr<RpcServer> server_;
};

TEST(Moectl, AsksClusterAndServers) {
  FakeCluster cluster;
  EXPECT_THAT(cluster.Ask({"status"}).out, HasSubstr("phase       RUNNING"));
  EXPECT_THAT(cluster.Ask({"members"}).out, HasSubstr("server/s1"));
  EXPECT_THAT(cluster.Ask({"shards"}).out, HasSubstr("layer1/group1  server/s1"));
  EXPECT_THAT(cluster.Ask({"experts"}).out, HasSubstr("layer 1: 2 experts, 10 rows"));
  EXPECT_EQ(cluster.Ask({"experts", "--layer=0"}).exit_status, 1);
  EXPECT_THAT(cluster.Ask({"top", "--once"}).out,
              HasSubstr("server/s0 has waited 1.5 s for worker/w0\n"));
}

TEST(Moectl, JsonParses) {
  FakeCluster cluster;
  const auto ask = [&](std::vector<std::string> arguments) {
    arguments.push_back("--json");
    return nlohmann::json::parse(cluster.Ask(std::move(arguments)).out);
  };
  EXPECT_EQ(ask({"status"})["state"]["phase"], "PHASE_RUNNING");
  EXPECT_EQ(ask({"members"})["members"][1]["member"], "server/s1");
  EXPECT_EQ(ask({"shards"})["shards"][1]["server"], "server/s1");
  EXPECT_EQ(ask({"experts", "--top=1"})["layers"][0]["loads"][0]["expert"], 1);
  EXPECT_EQ(ask({"top", "--once"})["servers"][0]["waiting_for"], "worker/w0");
  EXPECT_EQ(ask({"digest"})["step"], 5);
}

TEST(Moectl, DigestWaitsUntilServersAreAtOneVersion) {
  FakeCluster cluster;
  const Result result = cluster.Ask({"digest"});
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const std::vector<std::string> tensors = {Sha256Hex("0"), Sha256Hex("1")};
  EXPECT_EQ(result.out,
            ModelDigest(std::span<const std::string>(tensors)).value() + "\n");
}

TEST(Moectl, DigestSaysIfServersStayApart) {
  FakeCluster cluster;
  cluster.server(1).lag = 1000;
  const Result result = cluster.Ask({"digest"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err, HasSubstr("server/s0 5, server/s1 4"));
}

TEST(Moectl, AServerThatIsGoneIsNamedAfterWhatTheOthersSaid) {
  FakeCluster cluster;
  cluster.server(1).Shutdown();
  const Result result = cluster.Ask({"shards"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.out, HasSubstr("layer1/group0  server/s0"));
  EXPECT_THAT(result.err, HasSubstr("can't reach server/s1 at "));
}

// `eval` with shell scripts in place of the daemons.
class EvalTest : public testing::Test {
 protected:
  EvalTest() {
    std::filesystem::remove_all(bin_);
    std::filesystem::create_directories(temporary_);
    Script("expert_server", "echo \"$@\" > " + bin_ + "/server.flags; exec sleep 0.2");
    Script("worker", "echo \"$@\" > " + bin_ + "/worker.flags; exec sleep 0.2");
    EXPECT_EQ(setenv("TMPDIR", temporary_.c_str(), 1), 0);
  }
  ~EvalTest() override {
    EXPECT_EQ(unsetenv("TMPDIR"), 0);
    // Whatever happened, nothing stays behind.
    EXPECT_TRUE(std::filesystem::is_empty(temporary_));
  }
  void Script(const std::string& name, const std::string& body) {
    const std::string path = bin_ + "/" + name;
    std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
    EXPECT_EQ(chmod(path.c_str(), 0755), 0);
  }
  // Listens, works for a while, and writes `result`.
  void Coordinator(const std::string& result, const std::string& end) {
    Script("coordinator",
           "for a in \"$@\"; do case $a in --port_file=*) port=${a#*=};; "
           "--result_json=*) result=${a#*=};; esac; done\n"
           "echo \"$@\" > " +
               bin_ +
               "/coordinator.flags\n"
               "echo 127.0.0.1:1234 > $port.new; mv $port.new $port; sleep 0.4\n"
               "echo '" +
               result + "' > $result\n" + end);
  }
  Result Eval(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"eval", "--checkpoint=/c", "--data=/d",
                                          "--bin_dir=" + bin_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Moectl(arguments);
  }
  std::string Contents(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(bin_ + "/" + name).rdbuf();
    return text.str();
  }

  const std::string bin_ = testing::TempDir() + "/eval_bin";
  const std::string temporary_ = bin_ + "/tmp";
};

constexpr char kFinished[] =
    R"({"phase": "FINISHED", "step": 40, "test_perplexity": 123.4567,
        "balance": [{"layer": 1, "cv_importance": 0.25, "cv_load": 0.5,
                     "max_over_mean_load": 1.5}], "seconds": 2})";

TEST_F(EvalTest, RunsAPrivateClusterAndPrintsItsResult) {
  Coordinator(kFinished, "exit 0");
  const Result text = Eval({"--threads=3"});
  ASSERT_EQ(text.exit_status, 0) << text.err;
  EXPECT_THAT(text.out, StartsWith("test perplexity 123.457 after 40 steps\n"));
  EXPECT_THAT(text.out, HasSubstr("0.250     0.500          1.500"));
  EXPECT_THAT(Contents("coordinator.flags"),
              HasSubstr("--evaluate=test --checkpoint=/c"));
  EXPECT_EQ(Contents("worker.flags"),
            "--name=eval --coordinator=127.0.0.1:1234 --data=/d --threads=3\n");
  EXPECT_THAT(Contents("server.flags"), HasSubstr("--coordinator=127.0.0.1:1234"));

  const Result json = Eval({"--json"});
  EXPECT_EQ(nlohmann::json::parse(json.out)["perplexity"], 123.4567);
}

TEST_F(EvalTest, SaysWhatAMemberSaidLast) {
  Coordinator(kFinished, "sleep 1; exit 1");
  Script("worker", "echo log >&2; echo 'the data is another' >&2; exit 1");
  const Result result = Eval();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err, HasSubstr("worker: the data is another"));
}

TEST_F(EvalTest, SaysWhyTheCoordinatorDoesNotStart) {
  Script("coordinator", "echo 'coordinator: no checkpoint in /c' >&2; exit 1");
  const Result result = Eval();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err, HasSubstr("no checkpoint in /c"));
}

TEST_F(EvalTest, NamesAMissingProgram) {
  const Result result =
      Moectl({"eval", "--checkpoint=/c", "--data=/d", "--bin_dir=" + bin_ + "/nowhere"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err,
              HasSubstr("there is no program " + bin_ + "/nowhere/coordinator"));
}

TEST_F(EvalTest, ShowsTheContextsThatTheWorkerWrote) {
  Coordinator(kFinished, "exit 0");
  Script(
      "worker",
      "echo \"$@\" > " + bin_ +
          "/worker.flags\n"
          "for a in \"$@\"; do case $a in --contexts_file=*) file=${a#*=};; esac; done\n"
          "echo '{\"experts\": [{\"layer\": 1, \"expert\": 3, \"contexts\": [{\"gate\": "
          "0.75, \"position\": 9, \"before\": \"in the\", \"word\": \"beginning\", "
          "\"after\": \"God created\"}]}]}' > $file");
  const auto ask = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"experts", "--top-contexts=2",
                                          "--bin_dir=" + bin_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Moectl(arguments);
  };
  const Result text = ask({"--checkpoint=/c", "--data=/d", "--layer=1", "--expert=3"});
  ASSERT_EQ(text.exit_status, 0) << text.err;
  EXPECT_EQ(text.out, "expert 3 of layer 1\n  0.750  in the [beginning] God created\n");
  EXPECT_THAT(
      Contents("worker.flags"),
      HasSubstr("--contexts_per_expert=2 --contexts_layer=1 --contexts_expert=3"));

  const Result json = ask({"--checkpoint=/c", "--data=/d", "--json"});
  EXPECT_EQ(nlohmann::json::parse(json.out)["experts"][0]["contexts"][0]["position"], 9);

  const Result alone = Moectl({"experts", "--expert=3"});
  EXPECT_EQ(alone.exit_status, 1);
  EXPECT_THAT(alone.err, HasSubstr("go with --top-contexts"));
  const Result without = ask({"--checkpoint=/c"});
  EXPECT_EQ(without.exit_status, 1);
  EXPECT_THAT(without.err,
              HasSubstr("--top-contexts needs a --checkpoint and the --data"));
}

}  // namespace
}  // namespace moe
