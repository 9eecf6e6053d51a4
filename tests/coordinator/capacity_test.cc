#include "server/coordinator/capacity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kGib = int64_t{1} << 30;

class CheckMemoryTest : public testing::Test {
 protected:
  CheckMemoryTest() {
    needs_["server/a"] = {.parameters = 8 * kGib, .optimizer = 4 * kGib};
    needs_["worker/a"] = {.gradients = 2 * kGib};
    needs_["worker/b"] = {.activations = 3 * kGib};
  }
  void Join(v1::MemberKind kind, const std::string& name, uint64_t bytes,
            const std::string& pool = "") {
    v1::RegisterRequest request;
    request.set_kind(kind);
    request.set_name(name);
    request.set_host("host-of-" + name);
    request.set_pid(7);
    request.set_memory_bytes(bytes);
    request.set_memory_pool(pool);
    members_.Add(request, 1, absl::UnixEpoch());
  }
  std::string Error() const {
    const absl::Status status = CheckMemory("job7", needs_, members_);
    if (status.ok()) return "";
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  }

  MemoryNeeds needs_;
  MemberTable members_{MemberTable::Rules()};
};

TEST_F(CheckMemoryTest, EachWithinItsOwn) {
  Join(v1::MEMBER_KIND_SERVER, "a", 12 * kGib);
  Join(v1::MEMBER_KIND_WORKER, "a", 2 * kGib);
  Join(v1::MEMBER_KIND_WORKER, "b", 0);  // unknown
  EXPECT_EQ(Error(), "");

  members_.Find("server/a")->registration.set_memory_bytes(12 * kGib - 1);
  EXPECT_THAT(
      Error(),
      AllOf(HasSubstr("the job job7 needs 12.0 GiB (parameters 8.0 GiB, optimizer "
                      "state 4.0 GiB) of memory on server/a (host-of-a pid 7), "
                      "which has 12.0 GiB: start more servers"),
            HasSubstr("or give --memory_gib"), Not(HasSubstr("worker/"))));
}

TEST_F(CheckMemoryTest, AMachinesMembersShareItsMemory) {
  Join(v1::MEMBER_KIND_SERVER, "a", 12 * kGib, "other machine");
  // The second one looked when the first one had begun.
  Join(v1::MEMBER_KIND_WORKER, "a", 6 * kGib, "machine");
  Join(v1::MEMBER_KIND_WORKER, "b", 5 * kGib, "machine");
  EXPECT_EQ(Error(), "");

  members_.Find("worker/b")->registration.set_memory_bytes(4 * kGib);
  EXPECT_THAT(
      Error(),
      AllOf(HasSubstr("needs 5.0 GiB of memory on host-of-b, which has 4.0 GiB for "
                      "worker/a 2.0 GiB (gradients 2.0 GiB), worker/b 3.0 GiB "
                      "(activations of a step 3.0 GiB): start more workers"),
            Not(HasSubstr("server/a"))));
}

TEST_F(CheckMemoryTest, HelpFitsWhatIsLarge) {
  Join(v1::MEMBER_KIND_SERVER, "a", 0);
  Join(v1::MEMBER_KIND_WORKER, "a", 0);
  const auto help = [&](const std::string& id, int64_t MemoryNeed::*part) {
    needs_ = {{id, {}}};
    needs_[id].*part = 1000;
    members_.Find(id)->registration.set_memory_bytes(1);
    return Error();
  };
  EXPECT_THAT(help("server/a", &MemoryNeed::optimizer),
              AllOf(HasSubstr("whole groups"), HasSubstr("--disk_dir and --disk_gib")));
  EXPECT_THAT(help("server/a", &MemoryNeed::activations),
              AllOf(HasSubstr("training.lanes"), HasSubstr("--activation_gib")));
  EXPECT_THAT(help("server/a", &MemoryNeed::messages), HasSubstr("training.lanes"));
  EXPECT_THAT(help("server/a", &MemoryNeed::copies), HasSubstr("--copy_gib"));
  EXPECT_THAT(help("worker/a", &MemoryNeed::gradients), HasSubstr("fewer replicas"));
  EXPECT_THAT(help("worker/a", &MemoryNeed::activations), HasSubstr("training.waves"));
}

}  // namespace
}  // namespace moe
