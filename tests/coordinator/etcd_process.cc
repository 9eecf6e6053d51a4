#include "tests/coordinator/etcd_process.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/coordinator/etcd_client.h"

namespace moe {
namespace {

constexpr char kProgram[] = "/usr/bin/etcd";
constexpr absl::Duration kPatience = absl::Seconds(30);

std::string FreeAddress() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(fd);
  return absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
}

}  // namespace

EtcdProcess::EtcdProcess(std::string folder)
    : folder_(std::move(folder)), client_(FreeAddress()), peer_(FreeAddress()) {}

EtcdProcess::~EtcdProcess() { Kill(); }

void EtcdProcess::Start() {
  ASSERT_EQ(access(kProgram, X_OK), 0)
      << kProgram << " is missing; deploy/install.sh test installs it";
  const std::string client = absl::StrCat("http://", client_);
  const std::string peer = absl::StrCat("http://", peer_);
  const std::string cluster = absl::StrCat("e=", peer);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execl(kProgram, kProgram, "--name", "e", "--data-dir", folder_.c_str(),
          "--listen-client-urls", client.c_str(), "--advertise-client-urls",
          client.c_str(), "--listen-peer-urls", peer.c_str(),
          "--initial-advertise-peer-urls", peer.c_str(), "--initial-cluster",
          cluster.c_str(), "--log-level", "error", nullptr);
    _exit(127);
  }
  ASSERT_GT(pid_, 0);
  EtcdClient::Options options;
  options.endpoints = {client_};
  etcdserverpb::RangeRequest request;
  request.set_key("is it there?");
  const auto answer = EtcdClient(options).Range(request, absl::Now() + kPatience);
  ASSERT_TRUE(answer.ok()) << answer.status();
}

void EtcdProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = 0;
}

void EtcdProcess::LoseData() { std::filesystem::remove_all(folder_); }

}  // namespace moe
