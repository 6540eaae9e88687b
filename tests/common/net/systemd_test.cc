#include "common/net/systemd.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "common/net/unique_fd.h"
#include "tests/support/temp_directory.h"

namespace ps::net {
namespace {

// What systemd has at the other end of NOTIFY_SOCKET.
class SystemdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const std::string path = (directory_ / "notify").string();
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    ASSERT_LT(path.size(), sizeof(address.sun_path));
    std::memcpy(address.sun_path, path.c_str(), path.size());
    ASSERT_EQ(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
    ::unsetenv("WATCHDOG_USEC");
    ::unsetenv("WATCHDOG_PID");
  }
  void TearDown() override {
    for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) ::unsetenv(name);
  }

  void SetWatchdog(int ms, pid_t pid) {
    ::setenv("WATCHDOG_USEC", std::to_string(ms * 1000).c_str(), 1);
    ::setenv("WATCHDOG_PID", std::to_string(pid).c_str(), 1);
  }

  std::optional<std::string> Receive() {
    std::array<char, 4096> text{};
    const ssize_t size = ::recv(socket_.get(), text.data(), text.size(), 0);
    if (size < 0) return std::nullopt;
    return std::string(text.data(), static_cast<std::size_t>(size));
  }

  // All that comes until `part` is in it, or for a time.
  std::string Until(const std::string& part, Milliseconds time = Milliseconds(5000)) {
    std::string all;
    loop_.RunUntil(
        [&] {
          while (const auto text = Receive()) all += *text;
          return !part.empty() && all.find(part) != std::string::npos;
        },
        time);
    return all;
  }

  test::TempDirectory directory_{"systemd"};
  UniqueFd socket_;
  Loop loop_;
  DaemonState state_;
};

TEST_F(SystemdTest, OneThatIsNotReadyAsksForMoreTimeAndSaysWhatItWaitsFor) {
  state_.status = "waits for ZooKeeper\nREADY=1";
  SystemdNotifier notifier(loop_, [this] { return state_; });
  const std::string text = Until("EXTEND_TIMEOUT_USEC=30000000\n");
  EXPECT_NE(text.find("STATUS=waits for ZooKeeper READY=1\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("\nREADY=1"), std::string::npos) << text;
  EXPECT_EQ(text.find("WATCHDOG=1"), std::string::npos) << text;
}

TEST_F(SystemdTest, ReadyIsSaidOnceAndAStatusWhenItChanges) {
  state_ = {true, "registered", ""};
  SystemdNotifier notifier(loop_, [this] { return state_; });
  std::string text = Until("READY=1\n");
  EXPECT_EQ(text, "STATUS=registered\nREADY=1\n");
  state_ = {false, "waits", ""};
  text = Until("STATUS=waits\n");
  state_ = {true, "registered", ""};
  text += Until("STATUS=registered\n");
  EXPECT_EQ(text, "STATUS=waits\nSTATUS=registered\n");
}

TEST_F(SystemdTest, TheWatchdogIsFedSeveralTimesInItsTimeAndNotWhileSomethingHangs) {
  SetWatchdog(200, ::getpid());
  state_ = {true, "registered", ""};
  SystemdNotifier notifier(loop_, [this] { return state_; });
  EXPECT_EQ(notifier.watchdog(), Milliseconds(200));
  Until("WATCHDOG=1\n");
  // A quarter of its time, with room for a busy machine.
  const std::int64_t begin = MonotonicMs();
  Until("WATCHDOG=1\n");
  EXPECT_LT(MonotonicMs() - begin, 150);
  state_.stuck = "lane 3";
  std::string text = Until("STATUS=stuck: lane 3\n");
  text += Until("", Milliseconds(400));
  const auto at = text.find("STATUS=stuck");
  ASSERT_NE(at, std::string::npos) << text;
  EXPECT_EQ(text.find("WATCHDOG=1", at), std::string::npos) << text;
  state_.stuck.clear();
  EXPECT_NE(Until("WATCHDOG=1\n").find("STATUS=registered\n"), std::string::npos);
}

TEST_F(SystemdTest, AWatchdogOfAnotherProcessIsNotFed) {
  SetWatchdog(200, ::getpid() + 1);
  state_ = {true, "registered", ""};
  SystemdNotifier notifier(loop_, [this] { return state_; });
  EXPECT_EQ(notifier.watchdog(), Milliseconds(0));
  EXPECT_EQ(Until("WATCHDOG=1", Milliseconds(900)), "STATUS=registered\nREADY=1\n");
}

TEST_F(SystemdTest, AReloadIsBracketed) {
  state_ = {true, "registered", ""};
  SystemdNotifier notifier(loop_, [this] { return state_; });
  Until("READY=1\n");
  std::string during;
  notifier.Reload([&] {
    during = Receive().value_or("");
    return Status(Error{ErrorCode::kInvalid, "the file is wrong"});
  });
  EXPECT_EQ(during.find("RELOADING=1\nMONOTONIC_USEC="), 0u) << during;
  EXPECT_EQ(Receive(), "READY=1\n");
}

TEST_F(SystemdTest, AReloadDoesNotMakeReadyWhatIsNot) {
  SystemdNotifier notifier(loop_, [this] { return state_; });
  int reloaded = 0;
  const auto reload = [&reloaded] {
    ++reloaded;
    return Ok();
  };
  notifier.Reload(reload);
  EXPECT_EQ(Receive(), std::nullopt);
  notifier.Stopping();
  EXPECT_EQ(Receive(), "STOPPING=1\n");
  notifier.Reload(reload);
  EXPECT_EQ(Receive(), std::nullopt);
  EXPECT_EQ(reloaded, 2);
}

TEST_F(SystemdTest, OneThatStopsIsNotReadyAnyMore) {
  SystemdNotifier notifier(loop_, [this] { return state_; });
  notifier.Stopping();
  notifier.Stopping();
  state_ = {true, "stops; 3 tasks", ""};
  const std::string text = Until("STATUS=stops; 3 tasks\n");
  EXPECT_EQ(text, "STOPPING=1\nSTATUS=stops; 3 tasks\n");
}

TEST_F(SystemdTest, WithoutSystemdNothingIsAsked) {
  ::unsetenv("NOTIFY_SOCKET");
  int asked = 0;
  SystemdNotifier notifier(loop_, [&] {
    ++asked;
    return state_;
  });
  EXPECT_FALSE(notifier.active());
  bool reloaded = false;
  notifier.Reload([&] {
    reloaded = true;
    return Ok();
  });
  notifier.Stopping();
  EXPECT_EQ(Until("", Milliseconds(700)), "");
  EXPECT_TRUE(reloaded);
  EXPECT_EQ(asked, 0);
}

}  // namespace
}  // namespace ps::net
