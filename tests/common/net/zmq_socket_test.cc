#include "common/net/zmq_socket.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/net/unique_fd.h"

namespace ps::net {
namespace {

constexpr Milliseconds kSoon{20'000};

zmq::message_t Frame(const std::string& text) { return CopyFrame(text.data(), text.size()); }

ZmqSocket::Frames Message(std::initializer_list<std::string> texts) {
  ZmqSocket::Frames frames;
  for (const std::string& text : texts) frames.push_back(Frame(text));
  return frames;
}

// A peer that is reached without ZeroMQ.
UniqueFd ConnectPlain(const std::string& endpoint) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port =
      htons(static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1))));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  PS_CHECK(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

class ZmqSocketTest : public ::testing::Test {
 protected:
  std::unique_ptr<ZmqSocket> Open(ZmqKind kind, ZmqOptions options = {}) {
    options.reconnect_interval_ms = 10;
    auto socket = ZmqSocket::Open(loop_, context_, kind, options);
    PS_CHECK(socket.ok());
    return std::move(socket).value();
  }
  // A ROUTER that sends every message back to where it came from.
  std::unique_ptr<ZmqSocket> OpenEcho(const std::string& endpoint = "tcp://127.0.0.1:0",
                                      ZmqOptions options = {}) {
    auto router = Open(ZmqKind::kRouter, options);
    ZmqSocket* const raw = router.get();
    // Who sent it may be gone.
    router->OnReceive(
        [raw](ZmqSocket::Frames&& frames) { (void)raw->Send(std::move(frames)).ok(); });
    auto bound = router->Bind(endpoint);
    PS_CHECK(bound.ok(), bound.ok() ? "" : bound.error().message);
    endpoint_ = *bound;
    return router;
  }
  // Sends until the connection is up.
  void SendWhenPossible(ZmqSocket& socket, const std::string& text) {
    ASSERT_TRUE(loop_.RunUntil(
        [&] {
          if (socket.Send(Message({text})).ok()) return true;
          std::this_thread::sleep_for(Milliseconds(1));
          loop_.Post([] {});
          return false;
        },
        kSoon));
  }

  Context context_;
  Loop loop_;
  std::string endpoint_;
};

TEST_F(ZmqSocketTest, AHundredThousandPingPongsDoNotStall) {
  const auto echo = OpenEcho();
  const auto dealer = Open(ZmqKind::kDealer);
  constexpr int kMessages = 100'000;
  int received = 0;
  bool in_order = true;
  dealer->OnReceive([&](ZmqSocket::Frames&& frames) {
    in_order = in_order && frames.size() == 1 && frames[0].to_string() == std::to_string(received);
    if (++received < kMessages) {
      PS_CHECK(dealer->Send(Message({std::to_string(received)})).ok());
    } else {
      loop_.Stop();
    }
  });
  ASSERT_TRUE(dealer->Connect(endpoint_).ok());
  SendWhenPossible(*dealer, "0");
  // A stall shows as the end of this guard.
  Timer guard(loop_);
  guard.After(Milliseconds(90'000), [this] { loop_.Stop(); });
  loop_.Run();
  EXPECT_EQ(received, kMessages);
  EXPECT_TRUE(in_order);
}

TEST_F(ZmqSocketTest, BurstsInBothDirectionsArriveComplete) {
  ZmqOptions options;
  options.send_high_water = 20'000;
  options.receive_high_water = 20'000;
  const auto router = Open(ZmqKind::kRouter, options);
  const auto dealer = Open(ZmqKind::kDealer, options);
  constexpr int kBurst = 5000;
  int at_router = 0;
  int at_dealer = 0;
  router->OnReceive([&](ZmqSocket::Frames&& frames) {
    if (++at_router != 1) return;
    // On the first message a burst the other way, while theirs still comes in.
    for (int i = 0; i < kBurst; ++i) {
      ZmqSocket::Frames reply;
      reply.push_back(CopyFrame(frames[0].data(), frames[0].size()));
      reply.push_back(Frame("head"));
      reply.push_back(Frame(std::string(100, 'x')));
      PS_CHECK(router->Send(std::move(reply)).ok());
    }
  });
  dealer->OnReceive([&](ZmqSocket::Frames&& frames) {
    if (frames.size() == 2) ++at_dealer;
  });
  const auto bound = router->Bind("tcp://127.0.0.1:*");
  ASSERT_TRUE(bound.ok());
  ASSERT_TRUE(dealer->Connect(*bound).ok());
  SendWhenPossible(*dealer, "first");
  for (int i = 1; i < kBurst; ++i) ASSERT_TRUE(dealer->Send(Message({"more"})).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return at_router == kBurst && at_dealer == kBurst; }, kSoon))
      << at_router << " " << at_dealer;
}

TEST_F(ZmqSocketTest, AFloodDoesNotKeepTheLoopFromItsOtherWork) {
  const auto router = Open(ZmqKind::kRouter);
  int received = 0;
  router->OnReceive([&](ZmqSocket::Frames&&) { ++received; });
  const auto bound = router->Bind("tcp://127.0.0.1:0");
  ASSERT_TRUE(bound.ok());
  const auto dealer = Open(ZmqKind::kDealer);
  ASSERT_TRUE(dealer->Connect(*bound).ok());
  SendWhenPossible(*dealer, "first");
  for (int i = 0; i < 900; ++i) ASSERT_TRUE(dealer->Send(Message({"more"})).ok());
  // All of it lies in the router's queue before the loop looks again.
  std::this_thread::sleep_for(Milliseconds(200));
  int when_posted_ran = -1;
  loop_.Post([&] { loop_.Post([&] { loop_.Post([&] { when_posted_ran = received; }); }); });
  ASSERT_TRUE(loop_.RunUntil([&] { return received == 901; }, kSoon));
  EXPECT_GE(when_posted_ran, 0);
  EXPECT_LT(when_posted_ran, 901);
}

TEST_F(ZmqSocketTest, TheDealerReconnectsAfterThePeerStartedAgain) {
  auto echo = OpenEcho();
  const std::string endpoint = endpoint_;
  const auto dealer = Open(ZmqKind::kDealer);
  std::vector<bool> connections;
  int received = 0;
  dealer->OnReceive([&](ZmqSocket::Frames&&) { ++received; });
  ASSERT_TRUE(dealer->OnConnection([&](bool up) { connections.push_back(up); }).ok());
  ASSERT_TRUE(dealer->Connect(endpoint).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return connections.size() == 1; }, kSoon));
  // What the callback says holds for Send() at once.
  ASSERT_TRUE(dealer->Send(Message({"a"})).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return received == 1; }, kSoon));

  echo.reset();
  ASSERT_TRUE(loop_.RunUntil([&] { return connections.size() == 2; }, kSoon));
  // libzmq tells of the end a moment before it takes the queue away.
  Status status;
  ASSERT_TRUE(loop_.RunUntil(
      [&] {
        loop_.Post([] {});
        return !(status = dealer->Send(Message({"nobody"}))).ok();
      },
      kSoon));
  EXPECT_EQ(status.error().code, ErrorCode::kUnreachable);

  echo = OpenEcho(endpoint);
  ASSERT_TRUE(loop_.RunUntil([&] { return connections.size() == 3; }, kSoon));
  EXPECT_EQ(connections, (std::vector<bool>{true, false, true}));
  ASSERT_TRUE(dealer->Send(Message({"b"})).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return received == 2; }, kSoon));
}

TEST_F(ZmqSocketTest, AFullQueueIsAnErrorWithTheFramesLeftAndWritableComesLater) {
  ZmqOptions small;
  small.send_high_water = 10;
  small.receive_high_water = 10;
  small.name = "lane 3";
  // A peer on a loop of its own that does not run yet: it does not read.
  Loop slow;
  auto opened = ZmqSocket::Open(slow, context_, ZmqKind::kRouter, small);
  ASSERT_TRUE(opened.ok());
  const auto router = std::move(opened).value();
  int received = 0;
  router->OnReceive([&](ZmqSocket::Frames&&) { ++received; });
  const auto bound = router->Bind("tcp://127.0.0.1:0");
  ASSERT_TRUE(bound.ok());
  const auto dealer = Open(ZmqKind::kDealer, small);
  ASSERT_TRUE(dealer->Connect(*bound).ok());
  SendWhenPossible(*dealer, "first");

  Status status;
  int sent = 1;
  ZmqSocket::Frames frames;
  const std::string big(200'000, 'x');
  for (; sent < 1000; ++sent) {
    frames = Message({"head", big});
    status = dealer->Send(std::move(frames));
    // Give libzmq's thread the time to fill the kernel's buffers.
    if (!status.ok()) std::this_thread::sleep_for(Milliseconds(20));
    if (!status.ok() && !(status = dealer->Send(std::move(frames))).ok()) break;
  }
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnreachable);
  EXPECT_NE(status.error().message.find("lane 3"), std::string::npos) << status.error().message;
  ASSERT_EQ(frames.size(), 2u);
  EXPECT_EQ(frames[0].to_string(), "head");
  EXPECT_EQ(frames[1].size(), big.size());

  bool writable = false;
  dealer->OnWritable([&] { writable = true; });
  EXPECT_FALSE(writable);
  ASSERT_TRUE(slow.RunUntil([&] { return received >= 10; }, kSoon));
  ASSERT_TRUE(loop_.RunUntil([&] { return writable; }, kSoon));
  ASSERT_TRUE(dealer->Send(std::move(frames)).ok());
  ASSERT_TRUE(slow.RunUntil([&] { return received == sent + 1; }, kSoon));
}

TEST_F(ZmqSocketTest, SendingToAPeerThatIsUnknownOrGoneIsNoticed) {
  const auto router = Open(ZmqKind::kRouter);
  std::string identity;
  router->OnReceive([&](ZmqSocket::Frames&& frames) { identity = frames[0].to_string(); });
  const auto bound = router->Bind("tcp://127.0.0.1:0");
  ASSERT_TRUE(bound.ok());
  EXPECT_EQ(router->Send(Message({"nobody", "x"})).error().code, ErrorCode::kNotFound);

  auto dealer = Open(ZmqKind::kDealer);
  ASSERT_TRUE(dealer->Connect(*bound).ok());
  SendWhenPossible(*dealer, "hello");
  ASSERT_TRUE(loop_.RunUntil([&] { return !identity.empty(); }, kSoon));
  ASSERT_TRUE(router->Send(Message({identity, "x"})).ok());
  dealer.reset();
  Status status;
  ASSERT_TRUE(loop_.RunUntil(
      [&] {
        status = router->Send(Message({identity, "x"}));
        if (status.ok()) std::this_thread::sleep_for(Milliseconds(1));
        loop_.Post([] {});
        return !status.ok();
      },
      kSoon));
  EXPECT_EQ(status.error().code, ErrorCode::kNotFound);
}

TEST_F(ZmqSocketTest, ARouterNamesThePeerWhoseConnectionBroke) {
  auto router = Open(ZmqKind::kRouter);
  std::map<std::string, std::string> said;  // by identity
  std::vector<std::string> lost;
  router->OnReceive(
      [&](ZmqSocket::Frames&& frames) { said[frames[0].to_string()] = frames[1].to_string(); });
  ASSERT_TRUE(
      router->OnPeerLost([&](const std::string& identity) { lost.push_back(identity); }).ok());
  const auto endpoint = router->Bind("tcp://127.0.0.1:0");
  ASSERT_TRUE(endpoint.ok());
  std::map<std::string, std::unique_ptr<ZmqSocket>> dealers;
  for (const char* name : {"a", "b", "c", "silent"}) {
    dealers[name] = Open(ZmqKind::kDealer);
    ASSERT_TRUE(dealers[name]->Connect(*endpoint).ok());
    if (std::string(name) != "silent") SendWhenPossible(*dealers[name], name);
  }
  ASSERT_TRUE(loop_.RunUntil([&] { return said.size() == 3; }, kSoon));
  for (const char* name : {"b", "silent", "a"}) {
    const std::size_t before = lost.size();
    dealers.erase(name);
    if (std::string(name) == "silent") continue;  // it has no identity that anybody has heard
    ASSERT_TRUE(loop_.RunUntil([&] { return lost.size() == before + 1; }, kSoon));
    EXPECT_EQ(said[lost.back()], name);
  }
  // A descriptor that is used anew belongs to the new peer.
  dealers["d"] = Open(ZmqKind::kDealer);
  ASSERT_TRUE(dealers["d"]->Connect(*endpoint).ok());
  SendWhenPossible(*dealers["d"], "d");
  ASSERT_TRUE(loop_.RunUntil([&] { return said.size() == 4; }, kSoon));
  dealers.erase("d");
  ASSERT_TRUE(loop_.RunUntil([&] { return lost.size() == 3; }, kSoon));
  EXPECT_EQ(said[lost.back()], "d");
}

TEST_F(ZmqSocketTest, JunkOnThePortHarmsNobody) {
  ZmqOptions options;
  options.max_frame_bytes = 100'000;
  options.handshake_timeout_ms = 200;
  const auto echo = OpenEcho("tcp://127.0.0.1:0", options);
  const auto dealer = Open(ZmqKind::kDealer);
  int received = 0;
  dealer->OnReceive([&](ZmqSocket::Frames&&) { ++received; });
  ASSERT_TRUE(dealer->Connect(endpoint_).ok());
  SendWhenPossible(*dealer, "before");
  std::mt19937 random(11);
  const std::string greeting("\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL\0\0\0\0", 20);
  for (int i = 0; i < 60; ++i) {
    const UniqueFd plain = ConnectPlain(endpoint_);
    std::string junk = i % 3 == 0   ? "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
                       : i % 3 == 1 ? greeting + std::string(44, '\0')
                                    : std::string();
    for (int n = static_cast<int>(random() % 3000); n > 0; --n) {
      junk.push_back(static_cast<char>(random()));
    }
    (void)!::send(plain.get(), junk.data(), junk.size(), MSG_NOSIGNAL);
  }
  SendWhenPossible(*dealer, "after");
  ASSERT_TRUE(loop_.RunUntil([&] { return received == 2; }, kSoon));
}

TEST_F(ZmqSocketTest, AFrameAboveTheLimitCutsOnlyItsSenderOff) {
  ZmqOptions options;
  options.max_frame_bytes = 1000;
  const auto echo = OpenEcho("tcp://127.0.0.1:0", options);
  const auto good = Open(ZmqKind::kDealer);
  const auto bad = Open(ZmqKind::kDealer);
  int received_good = 0;
  int received_bad = 0;
  bool lost = false;
  good->OnReceive([&](ZmqSocket::Frames&&) { ++received_good; });
  bad->OnReceive([&](ZmqSocket::Frames&&) { ++received_bad; });
  ASSERT_TRUE(bad->OnConnection([&](bool up) { lost = lost || !up; }).ok());
  ASSERT_TRUE(good->Connect(endpoint_).ok());
  ASSERT_TRUE(bad->Connect(endpoint_).ok());
  SendWhenPossible(*bad, std::string(1001, 'x'));
  ASSERT_TRUE(loop_.RunUntil([&] { return lost; }, kSoon));
  SendWhenPossible(*good, std::string(1000, 'x'));
  ASSERT_TRUE(loop_.RunUntil([&] { return received_good == 1; }, kSoon));
  EXPECT_EQ(received_bad, 0);
}

TEST_F(ZmqSocketTest, AMessageOfTooManyFramesIsLeftOutAndCounted) {
  ZmqOptions options;
  options.frames_max = 3;
  const auto echo = OpenEcho("tcp://127.0.0.1:0", options);
  const auto dealer = Open(ZmqKind::kDealer);
  std::vector<std::size_t> sizes;
  dealer->OnReceive([&](ZmqSocket::Frames&& frames) { sizes.push_back(frames.size()); });
  ASSERT_TRUE(dealer->Connect(endpoint_).ok());
  SendWhenPossible(*dealer, "one");
  ASSERT_TRUE(dealer->Send(Message({"1", "2", "3"})).ok());
  ASSERT_TRUE(dealer->Send(Message({"1", "2"})).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return sizes.size() == 2; }, kSoon));
  EXPECT_EQ(sizes, (std::vector<std::size_t>{1, 2}));
  EXPECT_EQ(echo->dropped_messages(), 1u);
}

TEST_F(ZmqSocketTest, ACallbackMayDestroyItsSocket) {
  const auto echo = OpenEcho();
  auto dealer = Open(ZmqKind::kDealer);
  int received = 0;
  dealer->OnReceive([&](ZmqSocket::Frames&&) {
    ++received;
    dealer.reset();
  });
  ASSERT_TRUE(dealer->Connect(endpoint_).ok());
  SendWhenPossible(*dealer, "1");
  if (dealer) (void)dealer->Send(Message({"2"})).ok();
  ASSERT_TRUE(loop_.RunUntil([&] { return dealer == nullptr; }, kSoon));
  EXPECT_FALSE(loop_.RunUntil([&] { return received > 1; }, Milliseconds(50)));

  auto other = Open(ZmqKind::kDealer);
  ASSERT_TRUE(other->OnConnection([&](bool) { other.reset(); }).ok());
  ASSERT_TRUE(other->Connect(endpoint_).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return other == nullptr; }, kSoon));
}

TEST_F(ZmqSocketTest, ForeignMemoryIsSentWithoutACopyAndGivenBack) {
  const auto echo = OpenEcho();
  const auto dealer = Open(ZmqKind::kDealer);
  std::string text;
  dealer->OnReceive([&](ZmqSocket::Frames&& frames) { text = frames[0].to_string(); });
  ASSERT_TRUE(dealer->Connect(endpoint_).ok());
  SendWhenPossible(*dealer, "up");
  ASSERT_TRUE(loop_.RunUntil([&] { return text == "up"; }, kSoon));
  std::vector<std::byte> bytes(100'000, std::byte{'z'});
  const void* const address = bytes.data();
  ZmqSocket::Frames frames;
  frames.push_back(TakeFrame(std::move(bytes)));
  EXPECT_EQ(frames[0].data(), address);
  ASSERT_TRUE(dealer->Send(std::move(frames)).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return text.size() == 100'000; }, kSoon));
  EXPECT_EQ(text, std::string(100'000, 'z'));
}

TEST_F(ZmqSocketTest, APortThatIsTakenAndAnEndpointThatMakesNoSenseAreErrors) {
  const auto echo = OpenEcho();
  const auto second = Open(ZmqKind::kRouter);
  const auto bound = second->Bind(endpoint_);
  ASSERT_FALSE(bound.ok());
  EXPECT_EQ(bound.error().code, ErrorCode::kConflict);
  EXPECT_NE(bound.error().message.find(endpoint_), std::string::npos);
  EXPECT_EQ(second->Bind("nonsense").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Open(ZmqKind::kDealer)->Connect("tcp://").error().code, ErrorCode::kInvalid);
  ZmqOptions unbounded;
  unbounded.send_high_water = 0;
  EXPECT_FALSE(ZmqSocket::Open(loop_, context_, ZmqKind::kDealer, unbounded).ok());
}

TEST_F(ZmqSocketTest, AContextHasRoomForManySockets) {
  std::vector<std::unique_ptr<ZmqSocket>> sockets;
  for (int i = 0; i < 300; ++i) sockets.push_back(Open(ZmqKind::kDealer));
  EXPECT_GE(zmq_ctx_get(context_.handle(), ZMQ_MAX_SOCKETS), 60'000);
}

TEST(EndpointTest, TheHostOfABoundEndpointIsReplaced) {
  EXPECT_EQ(EndpointWithHost("tcp://0.0.0.0:4711", "node7"), "tcp://node7:4711");
  EXPECT_EQ(EndpointWithHost("tcp://[::]:4711", "fe80::1"), "tcp://[fe80::1]:4711");
  EXPECT_EQ(EndpointWithHost("ipc:///tmp/x", "node7"), "ipc:///tmp/x");
}

}  // namespace
}  // namespace ps::net
