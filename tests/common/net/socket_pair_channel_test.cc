#include "common/net/socket_pair_channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace ps::net {
namespace {

constexpr Milliseconds kSoon{10'000};

std::vector<std::byte> Bytes(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

std::string Text(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::string Framed(const std::string& text) {
  const auto size = static_cast<std::uint32_t>(text.size());
  std::string result;
  for (int i = 0; i < 4; ++i) result.push_back(static_cast<char>(size >> (8 * i)));
  return result + text;
}

struct Receiver {
  explicit Receiver(Loop& loop, UniqueFd fd) {
    auto opened = FrameChannel::Open(loop, std::move(fd));
    PS_CHECK(opened.ok());
    channel = std::move(opened).value();
    channel->OnMessage(
        [this](std::span<const std::byte> bytes) { messages.push_back(Text(bytes)); });
    channel->OnClosed([this](const std::string& why) {
      ++closings;
      reason = why;
    });
    channel->Start();
  }

  std::unique_ptr<FrameChannel> channel;
  std::vector<std::string> messages;
  std::string reason;
  int closings = 0;
};

class FrameChannelTest : public ::testing::Test {
 protected:
  FrameChannelTest() {
    auto pair = MakeSocketPair();
    PS_CHECK(pair.ok());
    ours_ = std::move(pair->first);
    theirs_ = std::move(pair->second);
  }
  void WriteRaw(const std::string& bytes) {
    ASSERT_EQ(::write(ours_.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }

  Loop loop_;
  UniqueFd ours_;
  UniqueFd theirs_;
};

TEST_F(FrameChannelTest, MessagesOfAllSizesArriveWholeAndInOrderBothWays) {
  Receiver a(loop_, std::move(ours_));
  Receiver b(loop_, std::move(theirs_));
  std::vector<std::string> sent;
  for (const std::size_t size : {0u, 1u, 3u, 4u, 65531u, 65532u, 65536u, 3000000u, 17u}) {
    sent.push_back(std::string(size, static_cast<char>('a' + sent.size())));
    ASSERT_TRUE(a.channel->Send(Bytes(sent.back())).ok());
    ASSERT_TRUE(b.channel->Send(Bytes(sent.back())).ok());
  }
  ASSERT_TRUE(loop_.RunUntil(
      [&] { return a.messages.size() == sent.size() && b.messages.size() == sent.size(); }, kSoon));
  EXPECT_EQ(a.messages, sent);
  EXPECT_EQ(b.messages, sent);
  EXPECT_EQ(a.channel->queued_bytes(), 0u);
}

TEST_F(FrameChannelTest, AFrameThatComesByteByByteIsPutTogether) {
  Receiver b(loop_, std::move(theirs_));
  for (const char c : Framed("hello")) {
    EXPECT_TRUE(b.messages.empty());
    WriteRaw(std::string(1, c));
    (void)loop_.RunUntil([] { return false; }, Milliseconds(2));
  }
  ASSERT_TRUE(loop_.RunUntil([&] { return b.messages.size() == 1; }, kSoon));
  EXPECT_EQ(b.messages[0], "hello");
}

TEST_F(FrameChannelTest, FramesThatComeInOnePieceAreTakenApart) {
  Receiver b(loop_, std::move(theirs_));
  WriteRaw(Framed("one") + Framed("") + Framed("three") + Framed("fo").substr(0, 5));
  ASSERT_TRUE(loop_.RunUntil([&] { return b.messages.size() == 3; }, kSoon));
  EXPECT_EQ(b.messages, (std::vector<std::string>{"one", "", "three"}));
  WriteRaw("o");
  ASSERT_TRUE(loop_.RunUntil([&] { return b.messages.size() == 4; }, kSoon));
  EXPECT_EQ(b.messages[3], "fo");
}

TEST_F(FrameChannelTest, AnAnnouncedLengthAboveTheLimitClosesTheChannel) {
  Receiver b(loop_, std::move(theirs_));
  WriteRaw(Framed("before") + std::string("\x01\x00\x00\x04", 4) + "rest");
  ASSERT_TRUE(loop_.RunUntil([&] { return b.closings > 0; }, kSoon));
  EXPECT_EQ(b.messages, std::vector<std::string>{"before"});
  EXPECT_NE(b.reason.find("67108865 bytes"), std::string::npos) << b.reason;
  EXPECT_TRUE(b.channel->closed());
  EXPECT_EQ(b.channel->Send(Bytes("x")).error().code, ErrorCode::kClosed);
}

TEST_F(FrameChannelTest, TheEndOfThePeerIsToldOnceAfterItsLastMessage) {
  Receiver b(loop_, std::move(theirs_));
  WriteRaw(Framed("last"));
  ours_.Reset();
  ASSERT_TRUE(loop_.RunUntil([&] { return b.closings > 0; }, kSoon));
  EXPECT_EQ(b.messages, std::vector<std::string>{"last"});
  EXPECT_EQ(b.reason, "the peer closed the channel");
  EXPECT_FALSE(loop_.RunUntil([&] { return b.closings > 1; }, Milliseconds(20)));
}

TEST_F(FrameChannelTest, AMessageThatIsCutByTheEndIsNotHandedOut) {
  Receiver b(loop_, std::move(theirs_));
  WriteRaw(Framed("whole").substr(0, 7));
  ours_.Reset();
  ASSERT_TRUE(loop_.RunUntil([&] { return b.closings > 0; }, kSoon));
  EXPECT_TRUE(b.messages.empty());
  EXPECT_NE(b.reason.find("inside a message"), std::string::npos);
}

TEST_F(FrameChannelTest, TheQueueToAPeerThatDoesNotReadIsBounded) {
  auto channel = FrameChannel::Open(loop_, std::move(theirs_), 1u << 20);
  ASSERT_TRUE(channel.ok());
  const std::vector<std::byte> message(100'000);
  Status status;
  int sent = 0;
  while (sent < 1000 && (status = (*channel)->Send(message)).ok()) ++sent;
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnreachable);
  EXPECT_LE((*channel)->queued_bytes(), 1u << 20);
  EXPECT_GE(sent, 10);
}

TEST_F(FrameChannelTest, AMessageAboveTheLimitIsRefusedAndTheChannelStaysOpen) {
  Receiver a(loop_, std::move(ours_));
  Receiver b(loop_, std::move(theirs_));
  EXPECT_EQ(a.channel->Send(std::vector<std::byte>(FrameChannel::kMaxFrameBytes + 1)).error().code,
            ErrorCode::kInvalid);
  ASSERT_TRUE(a.channel->Send(Bytes("fine")).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return b.messages.size() == 1; }, kSoon));
}

TEST_F(FrameChannelTest, ACallbackMayDestroyTheChannel) {
  auto opened = FrameChannel::Open(loop_, std::move(theirs_));
  ASSERT_TRUE(opened.ok());
  std::unique_ptr<FrameChannel> channel = std::move(opened).value();
  int messages = 0;
  channel->OnMessage([&](std::span<const std::byte>) {
    ++messages;
    channel.reset();
  });
  channel->Start();
  WriteRaw(Framed("one") + Framed("two"));
  ASSERT_TRUE(loop_.RunUntil([&] { return channel == nullptr; }, kSoon));
  EXPECT_EQ(messages, 1);
}

TEST_F(FrameChannelTest, ADescriptorThatIsNoSocketIsRefused) {
  UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto opened = FrameChannel::Open(loop_, std::move(file));
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace ps::net
