#include "common/net/roles.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/operator.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

// By their files, of all .proto files that there are.
std::map<std::string, std::set<std::string>> ServicesInSources() {
  std::map<std::string, std::set<std::string>> services;
  for (const auto& file : std::filesystem::directory_iterator("proto/moe/v1")) {
    if (file.path().extension() != ".proto") continue;
    std::ifstream stream(file.path());
    std::stringstream text;
    text << stream.rdbuf();
    const std::string name =
        absl::StrCat("proto/moe/v1/", file.path().filename().string());
    for (const auto line : absl::StrSplit(text.str(), '\n')) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
      if (words.size() > 1 && words[0] == "service") services[name].insert(words[1]);
    }
  }
  return services;
}

TEST(RolesTest, EveryMethodHasAnEntry) {
  // So that the files below are linked.
  v1::RegisterRequest::descriptor();
  v1::ExchangeRequest::descriptor();
  v1::ScaleRequest::descriptor();
  v1::GetServerStatusRequest::descriptor();

  const auto sources = ServicesInSources();
  ASSERT_GE(sources.size(), 4u);
  int methods = 0;
  for (const auto& [name, services] : sources) {
    const google::protobuf::FileDescriptor* const file =
        google::protobuf::DescriptorPool::generated_pool()->FindFileByName(name);
    ASSERT_NE(file, nullptr) << "this test doesn't link " << name;
    EXPECT_EQ(file->service_count(), static_cast<int>(services.size())) << name;
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        const std::string method = absl::StrCat("/", file->service(s)->full_name(), "/",
                                                file->service(s)->method(m)->name());
        const auto allowed = RolesAllowed(method);
        ASSERT_TRUE(allowed.has_value())
            << method << " has no entry in common/net/roles.cc";
        EXPECT_FALSE(allowed->empty()) << method;
        ++methods;
      }
    }
  }
  EXPECT_GE(methods, 15);
}

TEST(RolesTest, ObserversChangeNothing) {
  for (const char* method :
       {"/moe.v1.ClusterStatusService/GetClusterStatus",
        "/moe.v1.ServerStatusService/GetServerStatus",
        "/moe.v1.ServerStatusService/GetTensorDigests", "/grpc.health.v1.Health/Check"}) {
    EXPECT_TRUE(RolesAllowed(method)->Has(Role::kObserver)) << method;
    EXPECT_TRUE(RolesAllowed(method)->Has(Role::kOperator)) << method;
  }
  for (const char* method :
       {"/moe.v1.OperatorService/Scale", "/moe.v1.OperatorService/TakeCheckpoint",
        "/moe.v1.CoordinatorService/Register", "/moe.v1.ShardService/Exchange"}) {
    EXPECT_FALSE(RolesAllowed(method)->Has(Role::kObserver)) << method;
  }
}

TEST(RolesTest, Refusals) {
  const absl::Status wrong =
      CheckMethod("/moe.v1.OperatorService/Scale", {Role::kWorker}, "CN=w0");
  EXPECT_EQ(wrong.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(wrong.message(),
            "/moe.v1.OperatorService/Scale is for the role operator; the certificate of "
            "CN=w0 has the role worker");
  EXPECT_TRUE(
      CheckMethod("/moe.v1.OperatorService/Scale", {Role::kOperator, Role::kWorker}, "")
          .ok());
  const absl::Status none = CheckMethod("/moe.v1.ShardService/Exchange", {}, "CN=x");
  EXPECT_THAT(std::string(none.message()), HasSubstr("has the role none"));
  const absl::Status unknown = CheckMethod("/moe.v1.Other/Do", {Role::kOperator}, "CN=x");
  EXPECT_EQ(unknown.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("unknown"));
}

TEST(RolesTest, Uris) {
  const auto roles = [](std::vector<std::string> uris) {
    return RolesOfUris(uris).ToString();
  };
  EXPECT_EQ(roles({"switchyard:role=worker"}), "worker");
  EXPECT_EQ(
      roles({"spiffe://x/y", "switchyard:role=operator", "switchyard:role=observer"}),
      "operator or observer");
  EXPECT_EQ(roles({"switchyard:role=Worker", "switchyard:role=workers", "role=worker",
                   "xswitchyard:role=worker", "switchyard:role="}),
            "none");
}

}  // namespace
}  // namespace moe
