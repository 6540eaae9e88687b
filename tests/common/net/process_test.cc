#include "common/net/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "common/net/socket_pair_channel.h"
#include "common/net/unique_fd.h"

namespace ps::net {
namespace {

constexpr Milliseconds kSoon{10'000};

// Without a pipe or a directory being read, which would be descriptors themselves.
constexpr const char* kListDescriptors =
    "n=0; while [ $n -lt 100 ]; do [ -e /proc/self/fd/$n ] && printf \"$n \"; n=$((n+1)); done; ";

class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ps-process-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~ProcessTest() override { std::filesystem::remove_all(folder_); }

  Result<std::unique_ptr<ChildProcess>> Start(ProcessSpec spec) {
    auto child = ChildProcess::Spawn(loop_, spec);
    if (child.ok()) (*child)->OnExit([this](ExitStatus status) { exit_ = status; });
    return child;
  }
  static ProcessSpec Shell(const std::string& script) {
    ProcessSpec spec;
    spec.argv = {"sh", "-c", script};
    return spec;
  }
  ExitStatus WaitForExit() {
    EXPECT_TRUE(loop_.RunUntil([this] { return exit_.has_value(); }, kSoon));
    return exit_.value_or(ExitStatus{-1, -1});
  }
  // Runs the script to its end and returns what it wrote.
  std::string Output(ProcessSpec spec) {
    const auto path = folder_ / "out";
    UniqueFd file(::open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600));
    spec.output_fd = file.get();
    auto child = Start(std::move(spec));
    EXPECT_TRUE(child.ok());
    if (!child.ok()) return child.error().message;
    EXPECT_TRUE(WaitForExit().success());
    return Read(path);
  }
  static std::string Read(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

  Loop loop_;
  std::filesystem::path folder_;
  std::optional<ExitStatus> exit_;
};

TEST_F(ProcessTest, TheExitStatusOfAChildIsReported) {
  auto child = Start(Shell("exit 7"));
  ASSERT_TRUE(child.ok());
  const ExitStatus status = WaitForExit();
  EXPECT_EQ(status.code, 7);
  EXPECT_EQ(status.signal, 0);
  EXPECT_EQ(status.Number(), 7);
  EXPECT_EQ(status.ToString(), "exited with status 7");
  EXPECT_FALSE((*child)->running());
  EXPECT_EQ((*child)->Signal(SIGTERM).error().code, ErrorCode::kNotFound);
}

TEST_F(ProcessTest, TheSignalThatKilledAChildIsReported) {
  auto child = Start(Shell("sleep 60"));
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE((*child)->SignalGroup(SIGTERM).ok());
  const ExitStatus status = WaitForExit();
  EXPECT_EQ(status.signal, SIGTERM);
  EXPECT_EQ(status.Number(), -SIGTERM);
  EXPECT_EQ(status.ToString(), "killed by signal 15 (Terminated)");
}

TEST_F(ProcessTest, AProgramThatDoesNotExistIsAnErrorOfSpawn) {
  ProcessSpec spec;
  spec.argv = {"/nowhere/no-such-program"};
  const auto child = Start(spec);
  ASSERT_FALSE(child.ok());
  EXPECT_EQ(child.error().code, ErrorCode::kNotFound);
  EXPECT_NE(child.error().message.find("/nowhere/no-such-program"), std::string::npos);
  spec.argv = {"no-such-program-in-path"};
  EXPECT_FALSE(Start(spec).ok());
  spec.argv = {};
  EXPECT_EQ(Start(spec).error().code, ErrorCode::kUsage);
}

TEST_F(ProcessTest, AFileThatMayNotBeExecutedIsDenied) {
  std::ofstream(folder_ / "plain") << "text";
  ProcessSpec spec;
  spec.argv = {(folder_ / "plain").string()};
  const auto child = Start(spec);
  ASSERT_FALSE(child.ok());
  EXPECT_EQ(child.error().code, ErrorCode::kDenied);
}

TEST_F(ProcessTest, StdoutAndStderrGoToTheGivenFile) {
  EXPECT_EQ(Output(Shell("echo one; echo two >&2; echo three")), "one\ntwo\nthree\n");
}

TEST_F(ProcessTest, TheEnvironmentIsAddedToAndReplaced) {
  ::setenv("PS_TEST_REPLACED", "old", 1);
  ::setenv("PS_TEST_KEPT", "kept", 1);
  ProcessSpec spec = Shell("echo $PS_TEST_ADDED $PS_TEST_REPLACED $PS_TEST_KEPT");
  spec.environment = {{"PS_TEST_ADDED", "added"}, {"PS_TEST_REPLACED", "new"}};
  EXPECT_EQ(Output(std::move(spec)), "added new kept\n");
}

TEST_F(ProcessTest, TheWorkingDirectoryIsChanged) {
  ProcessSpec spec = Shell("pwd -P");
  spec.working_directory = folder_.string();
  EXPECT_EQ(Output(spec), std::filesystem::canonical(folder_).string() + "\n");
  spec.working_directory = "/nowhere/at-all";
  const auto child = Start(spec);
  ASSERT_FALSE(child.ok());
  EXPECT_NE(child.error().message.find("/nowhere/at-all"), std::string::npos);
}

TEST_F(ProcessTest, TheChildHasTheInheritedDescriptorAsNumberThreeAndNoOther) {
  // One without close-on-exec, as a careless library opens them.
  const UniqueFd leaked(::open("/dev/null", O_RDONLY));
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ProcessSpec spec = Shell(std::string(kListDescriptors) + "echo hello >&3");
  spec.inherited_fd = pair->second.get();
  EXPECT_EQ(Output(spec), "0 1 2 3 ");
  char text[16] = {};
  ASSERT_EQ(::read(pair->first.get(), text, sizeof(text)), 6);
  EXPECT_STREQ(text, "hello\n");
}

TEST_F(ProcessTest, TheInheritedDescriptorMayAlreadyBeNumberThree) {
  // dup2 onto itself would leave close-on-exec set.
  const int saved = ::fcntl(3, F_DUPFD_CLOEXEC, 32);
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ASSERT_EQ(::dup3(pair->second.get(), 3, O_CLOEXEC), 3);
  ProcessSpec spec = Shell("echo hello >&3");
  spec.inherited_fd = 3;
  EXPECT_EQ(Output(spec), "");
  char text[16] = {};
  EXPECT_EQ(::read(pair->first.get(), text, sizeof(text)), 6);
  if (saved >= 0) {
    ::dup3(saved, 3, O_CLOEXEC);
    ::close(saved);
  }
}

TEST_F(ProcessTest, AChildWithoutAnInheritedDescriptorHasNoNumberThree) {
  EXPECT_EQ(Output(Shell(kListDescriptors)), "0 1 2 ");
}

TEST_F(ProcessTest, AChannelOverTheInheritedDescriptorEndsWithTheChild) {
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ProcessSpec spec = Shell("printf '\\003\\000\\000\\000abc' >&3");
  spec.inherited_fd = pair->second.get();
  auto child = Start(spec);
  ASSERT_TRUE(child.ok());
  pair->second.Reset();
  auto channel = FrameChannel::Open(loop_, std::move(pair->first));
  ASSERT_TRUE(channel.ok());
  std::string message;
  bool closed = false;
  (*channel)->OnMessage([&](std::span<const std::byte> bytes) {
    message.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  (*channel)->OnClosed([&](const std::string&) { closed = true; });
  (*channel)->Start();
  ASSERT_TRUE(loop_.RunUntil([&] { return closed && exit_.has_value(); }, kSoon));
  EXPECT_EQ(message, "abc");
}

TEST_F(ProcessTest, IgnoredAndBlockedSignalsOfOursAreNotInherited) {
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t blocked;
  sigset_t before;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  const std::string masks = Output(Shell("grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2"));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  EXPECT_EQ(masks, "0000000000000000\n0000000000000000\n");
}

TEST_F(ProcessTest, DestroyingTheObjectKillsTheWholeGroupAndReapsTheChild) {
  auto child = Start(Shell("sleep 60 & echo $! > " + (folder_ / "pid").string() + "; wait"));
  ASSERT_TRUE(child.ok());
  const pid_t pid = (*child)->pid();
  ASSERT_TRUE(loop_.RunUntil(
      [this] {
        std::this_thread::sleep_for(Milliseconds(1));
        loop_.Post([] {});
        return Read(folder_ / "pid").size() > 1;
      },
      kSoon));
  const pid_t grandchild = std::atoi(Read(folder_ / "pid").c_str());
  child.value().reset();
  EXPECT_EQ(::waitpid(pid, nullptr, WNOHANG), -1);
  // Someone else's zombie now, or gone.
  bool gone = false;
  for (int i = 0; i < 1000 && !gone; ++i) {
    const std::string stat =
        Read(std::filesystem::path("/proc") / std::to_string(grandchild) / "stat");
    gone = stat.empty() || stat.find(") Z ") != std::string::npos;
    if (!gone) std::this_thread::sleep_for(Milliseconds(5));
  }
  EXPECT_TRUE(gone);
  EXPECT_FALSE(exit_.has_value());
}

TEST_F(ProcessTest, AnExitThatCameBeforeItsCallbackWasSetIsStillTold) {
  auto child = ChildProcess::Spawn(loop_, Shell("exit 3"));
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(loop_.RunUntil([&child] { return !(*child)->running(); }, kSoon));
  (*child)->OnExit([this](ExitStatus status) { exit_ = status; });
  EXPECT_FALSE(exit_.has_value());
  EXPECT_EQ(WaitForExit().code, 3);
}

TEST_F(ProcessTest, AChildDiesWhenItsParentIsKilled) {
  const auto path = folder_ / "pid";
  const pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    Loop loop;
    const auto child =
        ChildProcess::Spawn(loop, Shell("echo $$ > " + path.string() + "; exec sleep 60"));
    if (!child.ok()) ::_exit(1);
    loop.Run();
    ::_exit(0);
  }
  std::string text;
  for (int i = 0; i < 2000 && text.empty(); ++i) {
    std::this_thread::sleep_for(Milliseconds(5));
    text = Read(path);
  }
  ASSERT_FALSE(text.empty());
  const auto process = std::filesystem::path("/proc") / std::to_string(std::atoi(text.c_str()));
  EXPECT_TRUE(std::filesystem::exists(process));
  ASSERT_EQ(::kill(parent, SIGKILL), 0);
  ASSERT_EQ(::waitpid(parent, nullptr, 0), parent);
  bool gone = false;
  for (int i = 0; i < 2000 && !gone; ++i) {
    const std::string stat = Read(process / "stat");
    gone = stat.empty() || stat.find(") Z ") != std::string::npos;
    if (!gone) std::this_thread::sleep_for(Milliseconds(5));
  }
  EXPECT_TRUE(gone);
}

TEST_F(ProcessTest, ManyChildrenAreAllReaped) {
  std::vector<std::unique_ptr<ChildProcess>> children;
  int sum = 0;
  int ended = 0;
  for (int i = 0; i < 20; ++i) {
    auto child = ChildProcess::Spawn(loop_, Shell("exit " + std::to_string(i)));
    ASSERT_TRUE(child.ok());
    (*child)->OnExit([&](ExitStatus status) {
      sum += status.code;
      ++ended;
    });
    children.push_back(std::move(child).value());
  }
  ASSERT_TRUE(loop_.RunUntil([&ended] { return ended == 20; }, kSoon));
  EXPECT_EQ(sum, 190);
}

}  // namespace
}  // namespace ps::net
