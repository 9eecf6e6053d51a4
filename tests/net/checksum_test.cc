#include "common/net/checksum.h"

#include <gtest/gtest.h>

#include <string>

#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {
namespace {

v1::ExchangeRequest Request() {
  v1::ExchangeRequest request;
  request.set_generation(3);
  v1::ForwardRequest& forward = *request.mutable_forward();
  forward.mutable_id()->set_step(17);
  forward.mutable_id()->set_mode(v1::MODE_TRAIN);
  for (uint32_t r = 0; r < 2; ++r) {
    v1::ForwardFrame& frame = *forward.add_frames();
    frame.set_replica(r);
    frame.set_x(std::string(10000, 'x'));
    v1::GroupRouting& group = *frame.add_groups();
    group.set_row("1234");
    group.add_importance(0.5);
    group.add_importance(-0.0);
  }
  return request;
}

TEST(ChecksumTest, ASealedMessageIsSoundAfterTheWire) {
  v1::ExchangeRequest request = Request();
  EXPECT_FALSE(CheckSeal(request).ok()) << "not sealed yet";
  Seal(&request);
  v1::ExchangeRequest received;
  ASSERT_TRUE(received.ParseFromString(request.SerializeAsString()));
  EXPECT_TRUE(CheckSeal(received).ok()) << CheckSeal(received);
  // Sealing again changes nothing.
  Seal(&received);
  EXPECT_EQ(received.checksum(), request.checksum());
}

TEST(ChecksumTest, EveryFieldCounts) {
  v1::ExchangeRequest sealed = Request();
  Seal(&sealed);
  const auto spoiled = [&](auto&& spoil) {
    v1::ExchangeRequest request = sealed;
    spoil(request);
    return CheckSeal(request).code();
  };
  const auto damaged = absl::StatusCode::kDataLoss;
  using Request = v1::ExchangeRequest;
  EXPECT_EQ(spoiled([](Request& r) { r.set_generation(2); }), damaged);
  EXPECT_EQ(spoiled([](Request& r) { r.set_checksum(r.checksum() ^ 1); }), damaged);
  EXPECT_EQ(spoiled([](Request& r) { r.mutable_forward()->mutable_id()->set_wave(1); }),
            damaged);
  EXPECT_EQ(spoiled([](Request& r) { r.mutable_forward()->mutable_id()->clear_mode(); }),
            damaged);
  EXPECT_EQ(spoiled([](Request& r) { r.mutable_forward()->clear_id(); }), damaged);
  EXPECT_EQ(spoiled([](Request& r) { r.mutable_forward()->add_frames(); }), damaged);
  EXPECT_EQ(spoiled([](Request& r) {
              r.mutable_forward()->mutable_frames()->SwapElements(0, 1);
            }),
            damaged);
  const auto frame = [](Request& r) { return r.mutable_forward()->mutable_frames(1); };
  EXPECT_EQ(spoiled([&](Request& r) { (*frame(r)->mutable_x())[5000] ^= 1; }), damaged);
  EXPECT_EQ(spoiled([&](Request& r) { frame(r)->mutable_x()->pop_back(); }), damaged);
  // The same bytes in another field.
  EXPECT_EQ(spoiled([&](Request& r) {
              v1::GroupRouting& group = *frame(r)->mutable_groups(0);
              group.set_expert(group.row());
              group.clear_row();
            }),
            damaged);
  EXPECT_EQ(
      spoiled([&](Request& r) { frame(r)->mutable_groups(0)->set_importance(1, 0.0); }),
      damaged);
  // The same values at another depth.
  EXPECT_EQ(spoiled([&](Request& r) {
              *r.mutable_forward()->mutable_frames(0)->add_groups() = frame(r)->groups(0);
              frame(r)->clear_groups();
            }),
            damaged);
}

TEST(ChecksumTest, EveryKindOfField) {
  v1::RegisterRequest request;
  const uint32_t empty = ChecksumOf(request, 0);
  request.set_protocol_version(-1);  // int32
  const uint32_t version = ChecksumOf(request, 0);
  request.set_pid(-1);  // int64
  const uint32_t pid = ChecksumOf(request, 0);
  request.set_kind(v1::MEMBER_KIND_WORKER);
  EXPECT_NE(empty, version);
  EXPECT_NE(version, pid);
  EXPECT_NE(pid, ChecksumOf(request, 0));
  v1::FailJobRequest lost;
  lost.set_peer_lost(true);
  EXPECT_NE(ChecksumOf(lost, 0), empty);
  EXPECT_EQ(ChecksumOf(lost, v1::FailJobRequest::kPeerLostFieldNumber), empty);
}

// So that fields may be added.
TEST(ChecksumTest, FieldsThatTheReceiverDoesNotKnowDoNotCount) {
  v1::ExchangeRequest request = Request();
  Seal(&request);
  request.GetReflection()->MutableUnknownFields(&request)->AddVarint(1000, 5);
  EXPECT_TRUE(CheckSeal(request).ok());
}

}  // namespace
}  // namespace moe
