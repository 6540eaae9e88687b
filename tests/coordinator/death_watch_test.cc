#include "coordinator/shell/death_watch.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <string>
#include <vector>

namespace ps::coordinator {
namespace {

using tcp = boost::asio::ip::tcp;
using net::Milliseconds;

constexpr Milliseconds kSoon{10'000};

class DeathWatchTest : public ::testing::Test {
 protected:
  static DeathWatchOptions Options() {
    DeathWatchOptions options;
    options.probe_interval = Milliseconds(5);
    options.patience = Milliseconds(200);
    return options;
  }
  // A port that listens while `acceptor` is open.
  std::string Listen(tcp::acceptor& acceptor) {
    acceptor.open(tcp::v4());
    acceptor.bind({boost::asio::ip::address_v4::loopback(), 0});
    acceptor.listen();
    return "tcp://127.0.0.1:" + std::to_string(acceptor.local_endpoint().port());
  }
  void Wait(Milliseconds time) {
    (void)loop_.RunUntil([] { return false; }, time);
  }

  net::Loop loop_;
  std::vector<std::string> dead_;
  DeathWatch watch_{loop_, [this](const std::string& procid) { dead_.push_back(procid); },
                    Options()};
};

TEST_F(DeathWatchTest, AServerWhosePortRefusesIsDeadAtOnce) {
  tcp::acceptor acceptor(loop_.context());
  const std::string endpoint = Listen(acceptor);
  acceptor.close();
  const std::int64_t before = loop_.NowMs();
  watch_.OnLost("s1", endpoint);
  ASSERT_TRUE(loop_.RunUntil([&] { return !dead_.empty(); }, kSoon));
  EXPECT_EQ(dead_, std::vector<std::string>{"s1"});
  EXPECT_LT(loop_.NowMs() - before, Options().patience.count());
  Wait(Milliseconds(300));
  EXPECT_EQ(dead_.size(), 1U);
}

TEST_F(DeathWatchTest, AServerThatClosesItsPortALittleLaterIsDeadThen) {
  tcp::acceptor acceptor(loop_.context());
  watch_.OnLost("s1", Listen(acceptor));
  Wait(Milliseconds(50));
  EXPECT_TRUE(dead_.empty());
  acceptor.close();
  ASSERT_TRUE(loop_.RunUntil([&] { return !dead_.empty(); }, Milliseconds(140)));
}

TEST_F(DeathWatchTest, AServerThatListensIsLeftToItsSession) {
  tcp::acceptor acceptor(loop_.context());
  watch_.OnLost("s1", Listen(acceptor));
  watch_.OnLost("s2", "tcp://host.invalid:1");
  watch_.OnLost("s3", "tcp://");
  watch_.OnLost("s4", "");
  Wait(Milliseconds(400));
  EXPECT_TRUE(dead_.empty());
}

TEST_F(DeathWatchTest, AServerThatIsBackIsNotWatched) {
  tcp::acceptor acceptor(loop_.context());
  const std::string endpoint = Listen(acceptor);
  watch_.OnLost("s1", endpoint);
  watch_.OnLost("s2", endpoint);
  Wait(Milliseconds(20));
  watch_.Forget("s1");
  acceptor.close();
  Wait(Milliseconds(200));
  EXPECT_EQ(dead_, std::vector<std::string>{"s2"});
  watch_.OnLost("s3", endpoint);
  watch_.Clear();
  Wait(Milliseconds(50));
  EXPECT_EQ(dead_.size(), 1U);
}

TEST_F(DeathWatchTest, ALeaderMayStopWatchingFromInsideTheVerdict) {
  int told = 0;
  std::unique_ptr<DeathWatch> watch;
  watch = std::make_unique<DeathWatch>(
      loop_,
      [&](const std::string&) {
        ++told;
        watch->Clear();
      },
      Options());
  tcp::acceptor acceptor(loop_.context());
  const std::string endpoint = Listen(acceptor);
  acceptor.close();
  watch->OnLost("s1", endpoint);
  watch->OnLost("s2", endpoint);
  Wait(Milliseconds(200));
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace ps::coordinator
