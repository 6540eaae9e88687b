// Who is let in, with real sockets on this host.
#include "common/net/context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "tests/support/temp_directory.h"

namespace ps::net {
namespace {

using ::testing::HasSubstr;

class SecureContextTest : public ::testing::Test {
 protected:
  SecureContextTest() {
    Trust({{Role::kServer, "server"}, {Role::kWorker, "worker"}, {Role::kOperator, "operator"}});
  }

  // Makes keys for who has none, and the list anew.
  void Trust(const std::vector<std::pair<Role, std::string>>& whom) {
    std::string text;
    for (const auto& [role, name] : whom) {
      if (!pairs_.contains(name)) Make(name);
      text += TrustedLine({role, name, pairs_.at(name).public_key, std::nullopt});
    }
    const auto path = directory_.path() / "trusted";
    std::ofstream(path.string() + ".new") << text;
    std::filesystem::rename(path.string() + ".new", path);
  }
  void Make(const std::string& name) {
    pairs_[name] = MakeKeyPair().value();
    const std::string path = KeyPath(name);
    std::ofstream(path) << KeyFileText(pairs_[name]);
    ::chmod(path.c_str(), 0600);
  }
  std::string KeyPath(const std::string& name) const {
    return (directory_.path() / (name + ".key")).string();
  }
  SecurityOptions OptionsOf(const std::string& name) const {
    return {KeyPath(name), (directory_.path() / "trusted").string()};
  }

  // Of a server that admits workers, and counts what they say.
  struct Door {
    explicit Door(SecureContextTest& test) {
      EXPECT_TRUE(context.Secure(test.OptionsOf("server")).ok());
      ZmqOptions options;
      options.admits = {Role::kWorker};
      socket = ZmqSocket::Open(test.loop_, context, ZmqKind::kRouter, options).value();
      socket->OnReceive([this](ZmqSocket::Frames&&) { ++received; });
      endpoint = socket->Bind("tcp://127.0.0.1:*").value();
    }
    Context context;
    std::unique_ptr<ZmqSocket> socket;
    std::string endpoint;
    int received = 0;
  };
  struct Guest {
    Guest(SecureContextTest& test, const std::optional<std::string>& name) {
      if (name) {
        EXPECT_TRUE(context.Secure(test.OptionsOf(*name)).ok());
      }
      socket = ZmqSocket::Open(test.loop_, context, ZmqKind::kDealer).value();
      EXPECT_TRUE(socket->OnConnection([this](bool up) { connected = up; }).ok());
    }
    void Say() {
      ZmqSocket::Frames frames;
      frames.push_back(CopyFrame("hello", 5));
      EXPECT_TRUE(socket->Send(std::move(frames)).ok());
    }
    Context context;
    std::unique_ptr<ZmqSocket> socket;
    bool connected = false;
  };

  const test::TempDirectory directory_;
  std::map<std::string, KeyPair> pairs_;
  Loop loop_;
};

TEST_F(SecureContextTest, WhoIsTrustedInTheRoleIsHeard) {
  Door door(*this);
  EXPECT_EQ(SplitKey(door.endpoint).key, pairs_["server"].public_key);
  Guest guest(*this, "worker");
  ASSERT_TRUE(guest.socket->Connect(door.endpoint).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return guest.connected; }, Milliseconds(5000)));
  guest.Say();
  EXPECT_TRUE(loop_.RunUntil([&] { return door.received == 1; }, Milliseconds(5000)));
  EXPECT_EQ(door.context.refused(), 0U);
}

TEST_F(SecureContextTest, OtherRolesUnknownKeysAndThoseWithoutOneAreNot) {
  Door door(*this);
  Guest other(*this, "operator");
  ASSERT_TRUE(other.socket->Connect(door.endpoint).ok());
  Make("stranger");
  Guest stranger(*this, std::nullopt);
  // Its own list trusts whom it wants.
  std::ofstream(directory_.path() / "own")
      << TrustedLine({Role::kWorker, "me", pairs_["stranger"].public_key, std::nullopt})
      << TrustedLine({Role::kServer, "it", pairs_["server"].public_key, std::nullopt});
  Context context;
  ASSERT_TRUE(context.Secure({KeyPath("stranger"), (directory_.path() / "own").string()}).ok());
  stranger.socket = ZmqSocket::Open(loop_, context, ZmqKind::kDealer).value();
  EXPECT_TRUE(stranger.socket->OnConnection([&](bool up) { stranger.connected = up; }).ok());
  ASSERT_TRUE(stranger.socket->Connect(door.endpoint).ok());
  Guest open(*this, std::nullopt);
  EXPECT_EQ(open.socket->Connect(door.endpoint).error().code, ErrorCode::kDenied);
  ASSERT_TRUE(open.socket->Connect(SplitKey(door.endpoint).address).ok());
  loop_.RunUntil([&] { return other.connected || stranger.connected || open.connected; },
                 Milliseconds(1500));
  EXPECT_FALSE(other.connected);
  EXPECT_FALSE(stranger.connected);
  EXPECT_FALSE(open.connected);
  EXPECT_EQ(door.received, 0);
  EXPECT_GE(door.context.refused(), 3U);
  stranger.socket.reset();
}

TEST_F(SecureContextTest, AServerThatIsNoneIsNotConnectedTo) {
  Door door(*this);
  Guest guest(*this, "worker");
  const std::string address = SplitKey(door.endpoint).address;
  EXPECT_EQ(guest.socket->Connect(address).error().code, ErrorCode::kDenied);
  const auto as_worker = guest.socket->Connect(WithKey(address, pairs_["worker"].public_key));
  ASSERT_FALSE(as_worker.ok());
  EXPECT_EQ(as_worker.error().code, ErrorCode::kDenied);
  EXPECT_THAT(as_worker.error().message, HasSubstr("is not that of a server"));
  // Somebody else sits where the server was.
  Trust({{Role::kServer, "server"}, {Role::kServer, "other"}, {Role::kWorker, "worker"}});
  Guest again(*this, "worker");
  ASSERT_TRUE(again.socket->Connect(WithKey(address, pairs_["other"].public_key)).ok());
  loop_.RunUntil([&] { return again.connected; }, Milliseconds(1000));
  EXPECT_FALSE(again.connected);
  EXPECT_EQ(door.received, 0);
}

TEST_F(SecureContextTest, WhoIsRevokedIsNotHeardAnyMoreAndWhoIsAddedIs) {
  Door door(*this);
  Guest guest(*this, "worker");
  ASSERT_TRUE(guest.socket->Connect(door.endpoint).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return guest.connected; }, Milliseconds(5000)));
  guest.Say();
  ASSERT_TRUE(loop_.RunUntil([&] { return door.received == 1; }, Milliseconds(5000)));
  Trust({{Role::kServer, "server"}, {Role::kWorker, "new"}});
  Guest added(*this, "new");
  ASSERT_TRUE(added.socket->Connect(door.endpoint).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return added.connected; }, Milliseconds(5000)));
  guest.Say();  // over the connection that it still has
  added.Say();
  ASSERT_TRUE(loop_.RunUntil([&] { return door.received == 2; }, Milliseconds(5000)));
  ASSERT_TRUE(loop_.RunUntil([&] { return door.context.refused() == 1; }, Milliseconds(5000)));
  EXPECT_EQ(door.received, 2);
  // A list that makes no sense changes nothing.
  std::ofstream(directory_.path() / "trusted") << "nonsense\n";
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  added.Say();
  EXPECT_TRUE(loop_.RunUntil([&] { return door.received == 3; }, Milliseconds(5000)));
}

TEST_F(SecureContextTest, WithoutFilesOfItsOwnNobodyStarts) {
  Context context;
  EXPECT_EQ(context.Secure({KeyPath("nobody"), OptionsOf("worker").trusted}).error().code,
            ErrorCode::kIo);
  EXPECT_EQ(context.Secure({KeyPath("worker"), "/nowhere"}).error().code, ErrorCode::kIo);
  Make("unlisted");
  const Status unlisted = context.Secure(OptionsOf("unlisted"));
  ASSERT_FALSE(unlisted.ok());
  EXPECT_EQ(unlisted.error().code, ErrorCode::kDenied);
  EXPECT_THAT(unlisted.error().message, HasSubstr(pairs_["unlisted"].public_key));
  EXPECT_FALSE(context.secure());
  EXPECT_TRUE(context.Secure({}).ok());
}

TEST_F(SecureContextTest, JunkOnASecureDoorHarmsNobody) {
  Door door(*this);
  Guest guest(*this, "worker");
  ASSERT_TRUE(guest.socket->Connect(door.endpoint).ok());
  ASSERT_TRUE(loop_.RunUntil([&] { return guest.connected; }, Milliseconds(5000)));
  for (int i = 0; i < 50; ++i) {
    Context context;
    const auto junk = ZmqSocket::Open(loop_, context, ZmqKind::kDealer).value();
    ASSERT_TRUE(junk->Connect(SplitKey(door.endpoint).address).ok());
    guest.Say();
  }
  EXPECT_TRUE(loop_.RunUntil([&] { return door.received == 50; }, Milliseconds(5000)));
}

}  // namespace
}  // namespace ps::net
