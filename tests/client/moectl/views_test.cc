#include "client/moectl/views.h"

#include "client/moectl/json.h"
#include "client/moectl/text_table.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

template <typename T>
T Parse(const std::string& text) {
  T message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message));
  return message;
}

v1::GetClusterStatusResponse Running() {
  return Parse<v1::GetClusterStatusResponse>(R"pb(
    state {
      phase: PHASE_RUNNING
      generation: 2
      recovery: "server/s1 was lost"
      mode: RUN_MODE_TRAIN
      job { name: "bible" }
    }
    members {
      member: "server/s0"
      kind: MEMBER_KIND_SERVER
      address: "127.0.0.1:4000"
      host: "h"
      pid: 12
      seconds_since_heartbeat: 0.25
      times { computing: 6 waiting: 3 moving: 1 }
      memory_bytes: 8589934592
      memory_need_bytes: 1610612736
    }
    members {
      member: "worker/w0"
      kind: MEMBER_KIND_WORKER
      host: "h"
      pid: 13
      waiting_for: "server/s0"
    }
    progress {
      step: 1200
      total_steps: 4000
      words_per_second: 3214.4
      seconds_left: 80
      train_perplexity: 301.5
      validation_perplexity: 280.25
      learning_rate: 0.00125
      balance { layer: 1 cv_importance: 0.05 cv_load: 0.06 max_over_mean_load: 1.5 }
    }
    checkpoints {
      folder: "/c/step-00001000"
      step: 1000
      digest: "abc"
      best: true
      last: true
    }
  )pb");
}

ServerReport Report(const std::string& server, const std::string& status) {
  ServerReport report;
  report.server.set_server(server);
  report.status = Parse<v1::GetServerStatusResponse>(status);
  return report;
}

std::vector<ServerReport> Reports() {
  std::vector<ServerReport> reports;
  reports.push_back(Report("server/s0", R"pb(
    shards { shard: "dense/0" version: 7 parameter_bytes: 2048 }
    shards {
      shard: "layer1/group0"
      version: 7
      optimizer_bytes: 512
      experts { layer: 1 expert: 0 last_rows: 10 total_rows: 100 updates: 7 }
      experts { layer: 1 expert: 1 last_rows: 0 total_rows: 3 updates: 1 }
    }
  )pb"));
  reports.push_back(Report("server/s1", R"pb(
    shards {
      shard: "layer1/group1"
      version: 7
      experts { layer: 1 expert: 2 last_rows: 30 total_rows: 90 updates: 6 }
      experts { layer: 1 expert: 3 last_rows: 0 total_rows: 0 }
    }
  )pb"));
  reports.push_back({.server = {}, .status = absl::UnavailableError("gone")});
  return reports;
}

TEST(TextTable, AlignsColumns) {
  TextTable table(std::vector<TextTable::Column>{
      {"NAME"}, {"N", TextTable::Align::kRight}, {"LAST"}});
  table.AddRow({"a", "1", "x"});
  table.AddRow({"long name", "1,000", ""});
  EXPECT_EQ(table.ToString(),
            "NAME           N  LAST\n"
            "a              1  x\n"
            "long name  1,000\n");
}

TEST(Views, Status) {
  const std::string text = StatusView(Running());
  EXPECT_THAT(text, HasSubstr("job         bible, training\n"));
  EXPECT_THAT(text, HasSubstr("phase       RUNNING, generation 2\n"
                              "since       server/s1 was lost\n"));
  EXPECT_THAT(text, HasSubstr("step        1,200 of 4,000, 3214 words/s, "));
  EXPECT_THAT(text, HasSubstr("perplexity  train 301.50, validation 280.25\n"));
  EXPECT_THAT(text,
              HasSubstr("layer 1     CV(importance) 0.050, CV(load) 0.060, most loaded "
                        "expert 1.50 times the mean\n"));
  EXPECT_THAT(text, HasSubstr("members     1 server, 1 worker\n"));
  EXPECT_THAT(text, HasSubstr("best last"));
  EXPECT_THAT(text, Not(HasSubstr("failure")));
}

TEST(Views, StatusOfAFailedJobHasTheCause) {
  v1::GetClusterStatusResponse status;
  status.mutable_state()->set_phase(v1::PHASE_FAILED);
  status.mutable_state()->set_failure("server/s1 is lost");
  const std::string text = StatusView(status);
  EXPECT_THAT(text, HasSubstr("phase       FAILED"));
  EXPECT_THAT(text, HasSubstr("failure     server/s1 is lost\n"));
}

TEST(Views, StatusSaysWhomTheClusterWaitsFor) {
  v1::GetClusterStatusResponse status;
  status.mutable_state()->set_phase(v1::PHASE_WAITING);
  status.mutable_state()->set_waiting_for("waiting for 1 of 2 servers");
  EXPECT_THAT(StatusView(status), HasSubstr("waiting for 1 of 2 servers\n"));
  EXPECT_THAT(StatusView(status), Not(HasSubstr("waiting for waiting")));
}

TEST(Views, Members) {
  const std::string text = MembersView(Running());
  EXPECT_THAT(text, HasSubstr("computing 60 %, waiting 30 %, moving 10 %"));
  EXPECT_THAT(text, HasSubstr("0.2 s ago"));
  EXPECT_THAT(text, HasSubstr("needs 1.5 GiB of 8.0 GiB"));
  EXPECT_THAT(text, HasSubstr("worker/w0"));
}

TEST(Views, Shards) {
  const std::string text = ShardsView(Reports());
  EXPECT_THAT(text,
              HasSubstr("dense/0        server/s0        7        -             -"));
  EXPECT_THAT(text,
              HasSubstr("layer1/group1  server/s1        7        2            30"));
}

TEST(Views, StatusSaysWhatHasNoSecondCopy) {
  v1::GetClusterStatusResponse status = Running();
  EXPECT_THAT(StatusView(status), Not(HasSubstr("standby")));
  status.mutable_state()->set_without_standby("server/s1 was lost; 3 of 9 shards ...");
  EXPECT_THAT(StatusView(status),
              HasSubstr("standby     server/s1 was lost; 3 of 9 shards ...\n"));
}

TEST(Views, ExpertsOfTwoCopiesCountOnce) {
  std::vector<ServerReport> reports = Reports();
  const std::string once = ExpertsView(LayerLoads(reports), 0);
  std::vector<ServerReport> twice = reports;
  for (const ServerReport& report : reports) {
    twice.push_back(report);
    twice.back().server.set_server("server/s9");
  }
  EXPECT_EQ(ExpertsView(LayerLoads(twice), 0), once);
}

TEST(Views, ExpertsAreSortedByLoad) {
  const std::vector<LayerLoad> layers = LayerLoads(Reports());
  ASSERT_EQ(layers.size(), 1u);
  std::vector<uint32_t> order;
  for (const ExpertRow& row : layers[0].experts) order.push_back(row.expert.expert());
  EXPECT_THAT(order, testing::ElementsAre(2, 0, 1, 3));
  EXPECT_EQ(layers[0].rows, 40u);
  EXPECT_EQ(layers[0].max_rows, 30u);
  EXPECT_EQ(layers[0].max_over_mean, 3.0);
  EXPECT_EQ(layers[0].idle, 2u);
  const std::string text = ExpertsView(layers, 1);
  EXPECT_THAT(text,
              HasSubstr("layer 1: 4 experts, 40 rows in the last step, most loaded 3.00 "
                        "times the mean, 2 without a row\n"));
  EXPECT_THAT(text, HasSubstr("75.0 %"));
  EXPECT_THAT(text, Not(HasSubstr("layer1/group0")));
}

TEST(Json, KeepsNumbersAndDefaults) {
  v1::GetClusterStatusResponse status = Running();
  status.mutable_progress()->set_test_perplexity(
      std::numeric_limits<double>::quiet_NaN());
  const Json json = ToJson(status);
  EXPECT_EQ(json["progress"]["step"], 1200);
  EXPECT_TRUE(json["progress"]["test_perplexity"].is_null());
  EXPECT_EQ(json["state"]["phase"], "PHASE_RUNNING");
  EXPECT_EQ(json["state"]["failure"], "");
  EXPECT_FALSE(json["state"].contains("placement"));
  EXPECT_EQ(json["members"].size(), 2u);
  EXPECT_EQ(json["checkpoints"][0]["best"], true);
}

}  // namespace
}  // namespace moe
