#include "tests/support/child_process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "tests/support/temp_directory.h"

namespace ps::test {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLong{20'000};

ChildProcess::Options Shell(const std::string& script) {
  ChildProcess::Options options;
  options.argv = {"sh", "-c", script};
  return options;
}

TEST(ChildProcessTest, OutputEnvironmentAndExitCodeComeBack) {
  auto options = Shell("echo \"$GREETING\"; pwd; echo oops >&2; exit 7");
  options.environment["GREETING"] = "hello you";
  options.directory = "/";
  const auto finished = RunProgram(options, kLong);
  ASSERT_TRUE(finished.ok()) << finished.error().message;
  EXPECT_EQ(finished->exit, 7);
  EXPECT_EQ(finished->output, "hello you\n/\noops\n");
}

TEST(ChildProcessTest, AProgramThatIsNotThereIsAnError) {
  ChildProcess::Options options;
  options.argv = {"/no/such/program"};
  const auto child = ChildProcess::Start(options);
  ASSERT_FALSE(child.ok());
  EXPECT_NE(child.error().message.find("/no/such/program"), std::string::npos);
}

TEST(ChildProcessTest, AProgramThatTakesTooLongIsKilled) {
  const auto finished = RunProgram(Shell("echo begun; sleep 100"), milliseconds(300));
  ASSERT_FALSE(finished.ok());
  EXPECT_EQ(finished.error().code, ErrorCode::kTimeout);
}

TEST(ChildProcessTest, TheDestructorKillsTheWholeGroup) {
  const TempDirectory directory;
  auto options = Shell("sleep 1000 & echo $!; wait");
  options.output = directory / "output";
  auto child = ChildProcess::Start(options);
  ASSERT_TRUE(child.ok());
  pid_t grandchild = 0;
  for (int i = 0; i < 1000 && grandchild == 0; ++i) {
    std::ifstream(directory / "output") >> grandchild;
    std::this_thread::sleep_for(milliseconds(5));
  }
  ASSERT_GT(grandchild, 0);
  EXPECT_TRUE((*child)->Running());
  std::move(child).value().reset();
  // The orphan's new parent reaps it, some time; a zombie is dead enough.
  bool gone = false;
  for (int i = 0; i < 1000 && !gone; ++i) {
    std::ifstream stat("/proc/" + std::to_string(grandchild) + "/stat");
    std::string number;
    std::string name;
    std::string state;
    gone = !(stat >> number >> name >> state) || state == "Z";
    std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_TRUE(gone);
}

TEST(ChildProcessTest, TerminateGivesTimeAndThenKills) {
  auto polite = ChildProcess::Start(Shell("trap 'exit 3' TERM; while :; do sleep 0.01; done"));
  ASSERT_TRUE(polite.ok());
  std::this_thread::sleep_for(milliseconds(300));  // until the trap is set
  EXPECT_EQ((*polite)->Terminate(kLong), 3);
  auto stubborn = ChildProcess::Start(Shell("trap '' TERM; while :; do sleep 0.01; done"));
  ASSERT_TRUE(stubborn.ok());
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ((*stubborn)->Terminate(milliseconds(200)), 128 + SIGKILL);
}

TEST(ChildProcessTest, AStoppedProcessGoesOnAfterContinue) {
  auto child = ChildProcess::Start(Shell("sleep 0.2; exit 5"));
  ASSERT_TRUE(child.ok());
  (*child)->Stop();
  EXPECT_FALSE((*child)->Wait(milliseconds(600)).has_value());
  (*child)->Continue();
  EXPECT_EQ((*child)->Wait(kLong), 5);
  (*child)->Signal(SIGTERM);  // it has ended: nothing happens
}

TEST(TempDirectoryTest, ItIsThereAndGoesWithItsContents) {
  std::filesystem::path path;
  {
    const TempDirectory directory("x");
    path = directory.path();
    std::ofstream(directory / "file") << "text";
    EXPECT_TRUE(std::filesystem::exists(path / "file"));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(FreePortTest, APortIsGiven) {
  const auto port = FreePort();
  ASSERT_TRUE(port.ok());
  EXPECT_GT(*port, 0);
}

}  // namespace
}  // namespace ps::test
