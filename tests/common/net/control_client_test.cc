#include "common/net/control_client.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "common/check.h"

namespace ps::net {
namespace {

constexpr Milliseconds kSoon{15'000};

// The coordinator's side: a ROUTER that notes what comes and says what the test wants.
class FakeCoordinator {
 public:
  FakeCoordinator(Loop& loop, net::Context& context, std::uint64_t epoch,
                  const std::string& where = "tcp://127.0.0.1:0")
      : epoch_(epoch) {
    auto socket = ZmqSocket::Open(loop, context, ZmqKind::kRouter);
    PS_CHECK(socket.ok());
    socket_ = std::move(socket).value();
    socket_->OnReceive([this](ZmqSocket::Frames&& frames) {
      PS_CHECK(frames.size() == 2);
      identity_ = frames[0].to_string();
      auto message = control::Decode(
          std::span(static_cast<const std::byte*>(frames[1].data()), frames[1].size()));
      PS_CHECK(message.ok());
      names.push_back(control::BodyName(*message));
      if (const auto* const pong = message->body.AsPong()) last_pong = pong->sent_ms;
      if (message->body.AsRegisterServer() != nullptr && welcomes) Welcome();
    });
    auto bound = socket_->Bind(where);
    PS_CHECK(bound.ok());
    endpoint = *bound;
  }

  void Say(control::MessageT message) {
    message.leader_epoch = epoch_;
    const auto bytes = control::Encode(message);
    SayBytes(bytes.data(), bytes.size());
  }
  void SayBytes(const void* data, std::size_t size) {
    ZmqSocket::Frames frames;
    frames.push_back(CopyFrame(identity_.data(), identity_.size()));
    frames.push_back(CopyFrame(data, size));
    PS_CHECK(socket_->Send(std::move(frames)).ok());
  }
  void Welcome() {
    control::WelcomeT welcome;
    welcome.leader_epoch = epoch_;
    welcome.heartbeat_ms = heartbeat_ms;
    Say(control::Make(std::move(welcome)));
  }
  void Ping(std::uint64_t sent_ms) {
    control::PingT ping;
    ping.sent_ms = sent_ms;
    Say(control::Make(std::move(ping)));
  }
  void Drop(std::uint64_t job) {
    control::JobDropT drop;
    drop.job = job;
    Say(control::Make(std::move(drop)));
  }
  void set_epoch(std::uint64_t epoch) { epoch_ = epoch; }
  std::ptrdiff_t Count(const std::string& name) const {
    return std::count(names.begin(), names.end(), name);
  }

  std::string endpoint;
  std::vector<std::string> names;
  std::uint64_t last_pong = 0;
  bool welcomes = true;
  std::uint32_t heartbeat_ms = 60'000;

 private:
  std::uint64_t epoch_;
  std::string identity_;
  std::unique_ptr<ZmqSocket> socket_;
};

class ControlClientTest : public ::testing::Test {
 protected:
  std::unique_ptr<ControlClient> Open(ControlClientOptions options = {}) {
    auto client = std::make_unique<ControlClient>(
        loop_, context_,
        [this] {
          control::RegisterServerT registration;
          registration.name = "server-" + std::to_string(++registrations_);
          return control::Make(std::move(registration));
        },
        options);
    client->OnMessage([this](control::MessageT message) {
      received_.push_back(control::BodyName(message));
      if (const auto* const drop = message.body.AsJobDrop()) dropped_jobs_.push_back(drop->job);
    });
    return client;
  }
  bool Until(const std::function<bool()>& done) { return loop_.RunUntil(done, kSoon); }

  Context context_;
  Loop loop_;
  int registrations_ = 0;
  std::vector<std::string> received_;
  std::vector<std::uint64_t> dropped_jobs_;
};

control::MessageT Report() {
  control::ServerReportT report;
  report.job = 1;
  return control::Make(std::move(report));
}

TEST_F(ControlClientTest, RegistersWithTheLeaderAndIsWelcomed) {
  FakeCoordinator leader(loop_, context_, 4);
  const auto client = Open();
  EXPECT_EQ(client->Send(Report()).error().code, ErrorCode::kUnreachable);
  client->SetEndpoint(leader.endpoint);
  EXPECT_FALSE(client->registered());
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  EXPECT_EQ(client->leader_epoch(), 4u);
  EXPECT_EQ(received_, std::vector<std::string>{"Welcome"});
  ASSERT_TRUE(client->Send(Report()).ok());
  ASSERT_TRUE(Until([&] { return leader.Count("ServerReport") == 1; }));
  EXPECT_EQ(leader.names.front(), "RegisterServer");
  EXPECT_EQ(registrations_, 1);
}

TEST_F(ControlClientTest, APingIsAnsweredAndNotHandedOn) {
  FakeCoordinator leader(loop_, context_, 1);
  const auto client = Open();
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  leader.Ping(77);
  leader.Drop(9);
  ASSERT_TRUE(Until([&] { return leader.last_pong == 77 && !dropped_jobs_.empty(); }));
  EXPECT_EQ(received_, (std::vector<std::string>{"Welcome", "JobDrop"}));
}

TEST_F(ControlClientTest, WithoutAWelcomeItRegistersAgain) {
  FakeCoordinator leader(loop_, context_, 1);
  leader.welcomes = false;
  ControlClientOptions options;
  options.welcome_timeout = Milliseconds(30);
  const auto client = Open(options);
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return leader.Count("RegisterServer") >= 3; }));
  EXPECT_FALSE(client->registered());
  leader.welcomes = true;
  ASSERT_TRUE(Until([&] { return client->registered(); }));
}

TEST_F(ControlClientTest, WithoutPingsItConnectsAnewAndRegisters) {
  FakeCoordinator leader(loop_, context_, 1);
  leader.heartbeat_ms = 20;
  const auto client = Open();
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return leader.Count("RegisterServer") >= 3; }));
  leader.heartbeat_ms = 60'000;
  ASSERT_TRUE(Until([&] { return client->registered(); }));
}

TEST_F(ControlClientTest, PingsKeepTheRegistration) {
  FakeCoordinator leader(loop_, context_, 1);
  leader.heartbeat_ms = 200;
  const auto client = Open();
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  Timer timer(loop_);
  int pings = 0;
  timer.Every(Milliseconds(50), [&] { leader.Ping(static_cast<std::uint64_t>(++pings)); });
  ASSERT_TRUE(Until([&] { return pings >= 20; }));
  EXPECT_EQ(leader.Count("RegisterServer"), 1);
}

TEST_F(ControlClientTest, ItRegistersAgainWhenTheLeaderStartedAgainAtItsEndpoint) {
  auto leader = std::make_unique<FakeCoordinator>(loop_, context_, 1);
  const std::string endpoint = leader->endpoint;
  const auto client = Open();
  client->SetEndpoint(endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  leader.reset();
  ASSERT_TRUE(Until([&] { return !client->registered(); }));
  EXPECT_EQ(client->Send(Report()).error().code, ErrorCode::kUnreachable);
  leader = std::make_unique<FakeCoordinator>(loop_, context_, 2, endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  EXPECT_EQ(client->leader_epoch(), 2u);
  EXPECT_GE(registrations_, 2);
}

TEST_F(ControlClientTest, ANewEndpointIsRegisteredWithAndTheOldOneLeft) {
  FakeCoordinator first(loop_, context_, 1);
  FakeCoordinator second(loop_, context_, 2);
  const auto client = Open();
  client->SetEndpoint(first.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  client->SetEndpoint(first.endpoint);
  EXPECT_TRUE(client->registered());
  client->SetEndpoint(second.endpoint);
  EXPECT_FALSE(client->registered());
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  ASSERT_TRUE(client->Send(Report()).ok());
  ASSERT_TRUE(Until([&] { return second.Count("ServerReport") == 1; }));
  EXPECT_EQ(first.names, std::vector<std::string>{"RegisterServer"});
  client->SetEndpoint("");
  EXPECT_FALSE(client->registered());
  EXPECT_EQ(client->Send(Report()).error().message, "no coordinator leads now");
}

TEST_F(ControlClientTest, AMessageOfAnOlderLeaderIsDropped) {
  FakeCoordinator leader(loop_, context_, 5);
  const auto client = Open();
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  leader.set_epoch(4);
  leader.Drop(1);
  leader.Ping(123);
  leader.set_epoch(6);
  leader.Drop(2);
  leader.set_epoch(5);
  leader.Drop(3);
  leader.set_epoch(6);
  leader.Drop(4);
  ASSERT_TRUE(Until([&] { return dropped_jobs_.size() == 2; }));
  EXPECT_EQ(dropped_jobs_, (std::vector<std::uint64_t>{2, 4}));
  EXPECT_EQ(client->stale_messages(), 3u);
  EXPECT_EQ(client->leader_epoch(), 6u);
  EXPECT_EQ(leader.last_pong, 0u);
}

TEST_F(ControlClientTest, BytesThatAreNoMessageAreCounted) {
  FakeCoordinator leader(loop_, context_, 1);
  const auto client = Open();
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  leader.SayBytes("junk that is no message", 23);
  leader.SayBytes("", 0);
  leader.Drop(1);
  ASSERT_TRUE(Until([&] { return dropped_jobs_.size() == 1; }));
  EXPECT_EQ(client->bad_messages(), 2u);
}

TEST_F(ControlClientTest, ACallbackMayMoveToAnotherLeader) {
  FakeCoordinator first(loop_, context_, 1);
  FakeCoordinator second(loop_, context_, 2);
  const auto client = Open();
  client->OnMessage([&](control::MessageT message) {
    if (message.body.AsJobDrop() != nullptr) client->SetEndpoint(second.endpoint);
  });
  client->SetEndpoint(first.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
  first.Drop(1);
  ASSERT_TRUE(Until([&] { return client->leader_epoch() == 2 && client->registered(); }));
}

TEST_F(ControlClientTest, AnEndpointThatMakesNoSenseIsNotReachableAndCanBeReplaced) {
  FakeCoordinator leader(loop_, context_, 1);
  const auto client = Open();
  client->SetEndpoint("nonsense");
  EXPECT_EQ(client->Send(Report()).error().code, ErrorCode::kUnreachable);
  client->SetEndpoint(leader.endpoint);
  ASSERT_TRUE(Until([&] { return client->registered(); }));
}

}  // namespace
}  // namespace ps::net
