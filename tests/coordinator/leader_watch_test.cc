#include "coordinator/shell/leader_watch.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <vector>

#include "common/net/unique_fd.h"

namespace ps::coordinator {
namespace {

using net::Milliseconds;

constexpr Milliseconds kSoon{10'000};
// How long a connection and its loss take at most, on a busy machine.
constexpr Milliseconds kWhile{500};

// Refuses connections as long as it lives. A socket of ZeroMQ's that was closed may still listen
// for a moment, and then its port is anybody's.
class DeafPort {
 public:
  DeafPort() : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(fd_.get(), generic, size), 0);
    EXPECT_EQ(::getsockname(fd_.get(), generic, &size), 0);
    number_ = ntohs(address.sin_port);
  }
  int number() const { return number_; }

 private:
  const net::UniqueFd fd_;
  int number_ = 0;
};

class LeaderWatchTest : public ::testing::Test {
 protected:
  struct Leader {
    std::unique_ptr<net::ZmqSocket> socket;
    std::string endpoint;
  };
  Leader Lead() {
    Leader leader;
    leader.socket = net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kRouter).value();
    leader.endpoint = leader.socket->Bind("tcp://127.0.0.1:*").value();
    return leader;
  }
  void Wait(Milliseconds time) {
    (void)loop_.RunUntil([] { return false; }, time);
  }

  net::Loop loop_;
  net::Context context_;
  std::vector<std::string> dead_;
  LeaderWatch watch_{loop_, context_, [this](const std::string& name) { dead_.push_back(name); }};
};

TEST_F(LeaderWatchTest, ALeaderThatEndsIsDeadAtOnce) {
  Leader leader = Lead();
  watch_.Watch("c-1", leader.endpoint);
  Wait(kWhile);
  EXPECT_TRUE(dead_.empty());
  watch_.Watch("c-1", leader.endpoint);  // changes nothing
  leader.socket.reset();
  ASSERT_TRUE(loop_.RunUntil([&] { return !dead_.empty(); }, kSoon));
  Wait(kWhile);
  EXPECT_EQ(dead_, std::vector<std::string>{"c-1"});
}

TEST_F(LeaderWatchTest, OneThatWasNeverReachedIsLeftToItsSession) {
  const DeafPort port;
  const std::string endpoint = "tcp://127.0.0.1:" + std::to_string(port.number());
  watch_.Watch("c-1", endpoint);
  watch_.Watch("c-2", endpoint);
  Wait(kWhile);
  watch_.Watch("c-3", "nowhere");
  watch_.Watch("c-4", "");
  Wait(kWhile);
  EXPECT_TRUE(dead_.empty());
}

TEST_F(LeaderWatchTest, WhoLeadsNoLongerIsNotWatched) {
  Leader former = Lead();
  Leader leader = Lead();
  watch_.Watch("c-1", former.endpoint);
  Wait(kWhile);
  watch_.Watch("c-2", leader.endpoint);
  Wait(kWhile);
  former.socket.reset();
  Wait(kWhile);
  EXPECT_TRUE(dead_.empty());
  leader.socket.reset();
  ASSERT_TRUE(loop_.RunUntil([&] { return !dead_.empty(); }, kSoon));
  EXPECT_EQ(dead_, std::vector<std::string>{"c-2"});
}

}  // namespace
}  // namespace ps::coordinator
