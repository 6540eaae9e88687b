#include "common/messages/control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace ps::control {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

MessageT Registration() {
  RegisterServerT server;
  server.name = "node1";
  server.procid = "a1b2";
  server.lanes = {"tcp://10.0.0.1:7000", "tcp://10.0.0.1:7001"};
  server.jobs.push_back(std::make_unique<JobHoldingT>());
  server.jobs.back()->job = 3;
  server.jobs.back()->map_version = 9;
  return Make(std::move(server), 17, 5);
}

std::string ErrorOf(std::span<const std::byte> bytes) {
  const auto message = Decode(bytes);
  if (message.ok()) return "";
  EXPECT_EQ(message.error().code, ErrorCode::kInvalid);
  return message.error().message;
}

TEST(ControlTest, MessageSurvivesTheRoundTrip) {
  const auto decoded = Decode(Encode(Registration()));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(decoded->task, 17u);
  EXPECT_EQ(decoded->leader_epoch, 5u);
  EXPECT_STREQ(BodyName(*decoded), "RegisterServer");
  const RegisterServerT* server = decoded->body.AsRegisterServer();
  ASSERT_NE(server, nullptr);
  EXPECT_EQ(server->name, "node1");
  EXPECT_THAT(server->lanes, ElementsAre("tcp://10.0.0.1:7000", "tcp://10.0.0.1:7001"));
  ASSERT_EQ(server->jobs.size(), 1u);
  EXPECT_EQ(server->jobs[0]->map_version, 9u);
}

TEST(ControlTest, EveryBodyThatIsSentEmptyComesBackAsItself) {
  const auto check = [](auto body) {
    const MessageT message = Make(std::move(body));
    const auto decoded = Decode(Encode(message));
    ASSERT_TRUE(decoded.ok()) << BodyName(message) << ": " << decoded.error().message;
    EXPECT_EQ(decoded->body.type, message.body.type);
  };
  check(ServerReportT());
  check(PreparedT());
  check(JobStartT());
  check(JobUpdateT());
  check(RoundBeginT());
  check(RegisterAgentT());
  check(TaskExitedT());
  check(ReplayT());
  check(PreflightResultT());
  check(LeaseGrantT());
  check(ProgressT());
  check(DrainT());
  check(EvaluateT());
  check(PongT());
}

TEST(ControlTest, MessageMayStartAtAnyAddress) {
  const Bytes bytes = Encode(Registration());
  for (std::size_t shift = 1; shift < 8; ++shift) {
    Bytes shifted(shift + bytes.size());
    std::memcpy(shifted.data() + shift, bytes.data(), bytes.size());
    const auto decoded = Decode(std::span(shifted).subspan(shift));
    ASSERT_TRUE(decoded.ok()) << shift;
    EXPECT_EQ(decoded->body.AsRegisterServer()->name, "node1");
  }
}

TEST(ControlTest, NoCutOfAMessageIsReadBeyondItsEnd) {
  const Bytes bytes = Encode(Registration());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    // The tail may be padding or the end of the last string: what is accepted must still be whole.
    const auto decoded = Decode(std::span(bytes).first(size));
    if (!decoded.ok()) continue;
    EXPECT_STREQ(BodyName(*decoded), "RegisterServer") << size;
  }
  EXPECT_THAT(ErrorOf(std::span(bytes).first(bytes.size() / 2)), HasSubstr("verifier"));
  EXPECT_THAT(ErrorOf({}), HasSubstr("of 0 bytes"));
}

TEST(ControlTest, JunkIsRefused) {
  EXPECT_THAT(ErrorOf(Bytes(64)), HasSubstr("does not pass the verifier"));
  EXPECT_THAT(ErrorOf(Bytes(64, std::byte{0xff})), HasSubstr("does not pass the verifier"));
  const std::string text = "GET / HTTP/1.1\r\nHost: 10.0.0.1:7000\r\n\r\n";
  EXPECT_NE(ErrorOf(std::as_bytes(std::span(text.data(), text.size()))), "");
}

TEST(ControlTest, MessageWithoutABodyIsRefused) {
  EXPECT_THAT(ErrorOf(Encode(MessageT())), HasSubstr("without a body"));
}

TEST(ControlTest, MessageOfMoreThanTheLimitIsRefusedUnread) {
  const Bytes bytes(kMaxMessageBytes + 1);
  EXPECT_THAT(ErrorOf(bytes), HasSubstr("of 67108865 bytes, at most 67108864"));
}

TEST(ControlTest, FlippedBytesNeverBreakTheDecoder) {
  const Bytes bytes = Encode(Registration());
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    Bytes flipped = bytes;
    for (auto flips = 1 + random() % 3; flips > 0; --flips) {
      flipped[random() % flipped.size()] = static_cast<std::byte>(random());
    }
    const auto decoded = Decode(flipped);
    if (!decoded.ok()) continue;
    EXPECT_FALSE(Encode(*decoded).empty());
  }
}

TEST(ControlTest, CloneIsDeep) {
  const MessageT message = Registration();
  RegisterServerT copy = Clone(*message.body.AsRegisterServer());
  EXPECT_NE(copy.jobs[0].get(), message.body.AsRegisterServer()->jobs[0].get());
  EXPECT_EQ(Encode(Make(std::move(copy), 17, 5)), Encode(message));
}

}  // namespace
}  // namespace ps::control
