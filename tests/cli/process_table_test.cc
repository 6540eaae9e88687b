#include "cli/process_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

class ProcessTableTest : public testing::Test {
 protected:
  ProcessTableTest() : table_(test_.directory() / "run") {
    test_.UseRealTime();
    std::filesystem::create_directories(test_.directory() / "run");
    test_.environment().program_directory =
        std::filesystem::read_symlink("/proc/self/exe").parent_path();
  }

  ~ProcessTableTest() override {
    const auto processes = table_.List();
    if (processes.ok()) (void)table_.Stop(*processes, milliseconds(0), test_.environment());
  }

  Result<DaemonProcess> StartShell(const std::string& name, const std::string& script) {
    return table_.Start(DaemonSpec{
        name, {"/bin/sh", "-c", script}, test_.directory(), test_.directory() / (name + ".log")});
  }

  std::string Log(const std::string& name) {
    std::ifstream stream(test_.directory() / (name + ".log"));
    std::stringstream text;
    text << stream.rdbuf();
    return text.str();
  }

  bool WaitForLog(const std::string& name, const std::string& part) {
    for (int i = 0; i < 200; ++i) {
      if (Log(name).find(part) != std::string::npos) return true;
      test_.environment().sleep(milliseconds(20));
    }
    return false;
  }

  TestEnvironment test_;
  const ProcessTable table_;
};

TEST_F(ProcessTableTest, ADaemonRunsInItsDirectoryAndSessionAndIsListed) {
  const auto process = StartShell("one", "pwd; echo error >&2; exec sleep 60");
  ASSERT_TRUE(process.ok()) << process.error().message;
  EXPECT_TRUE(process->IsAlive());
  EXPECT_EQ(::getsid(process->pid), process->pid);
  EXPECT_TRUE(WaitForLog("one", "error"));
  EXPECT_THAT(Log("one"), HasSubstr(test_.directory().string()));
  const auto list = table_.List();
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1U);
  EXPECT_EQ((*list)[0].name, "one");
  EXPECT_EQ((*list)[0].pid, process->pid);
  EXPECT_TRUE((*list)[0].IsAlive());
}

TEST_F(ProcessTableTest, AProgramThatCannotRunIsAnErrorAndLeavesNoPidFile) {
  const auto process = table_.Start(
      DaemonSpec{"none", {"/does/not/exist"}, test_.directory(), test_.directory() / "none.log"});
  ASSERT_FALSE(process.ok());
  EXPECT_THAT(process.error().message, HasSubstr("/does/not/exist: No such file or directory"));
  EXPECT_TRUE(table_.List().value().empty());
}

TEST_F(ProcessTableTest, StopEndsTheWillingAndTheUnwilling) {
  ASSERT_TRUE(StartShell("willing", "exec sleep 60").ok());
  ASSERT_TRUE(StartShell("deaf", "trap '' TERM; echo deaf; while :; do sleep 0.1; done").ok());
  ASSERT_TRUE(WaitForLog("deaf", "deaf"));
  const auto list = table_.List().value();
  ASSERT_EQ(list.size(), 2U);
  ASSERT_TRUE(table_.Stop(list, milliseconds(300), test_.environment()).ok());
  for (const auto& process : list) EXPECT_FALSE(process.IsAlive()) << process.name;
  EXPECT_TRUE(table_.List().value().empty()) << "the pid files are gone";
}

TEST_F(ProcessTableTest, AStoppedProcessEndsToo) {
  const auto process = StartShell("stopped", "echo up; while :; do sleep 0.1; done");
  ASSERT_TRUE(process.ok());
  ASSERT_TRUE(WaitForLog("stopped", "up"));
  ASSERT_EQ(::kill(process->pid, SIGSTOP), 0);
  ASSERT_TRUE(table_.Stop({*process}, milliseconds(3000), test_.environment()).ok());
  EXPECT_FALSE(process->IsAlive());
}

TEST_F(ProcessTableTest, AProcessThatDiedIsNotAlive) {
  const auto process = StartShell("short", "exit 3");
  ASSERT_TRUE(process.ok());
  for (int i = 0; i < 200 && process->IsAlive(); ++i) test_.environment().sleep(milliseconds(10));
  EXPECT_FALSE(process->IsAlive());
  EXPECT_FALSE(table_.List().value()[0].IsAlive());
}

TEST_F(ProcessTableTest, APidThatAnotherProcessHasNowIsNotOurs) {
  // This very test has the pid, and another start time.
  std::ofstream(test_.directory() / "run" / "old.pid") << ::getpid() << " 1\n";
  const auto list = table_.List().value();
  ASSERT_EQ(list.size(), 1U);
  EXPECT_FALSE(list[0].IsAlive());
  ASSERT_TRUE(table_.Stop(list, milliseconds(0), test_.environment()).ok());
  EXPECT_TRUE(table_.List().value().empty());
}

TEST_F(ProcessTableTest, ADamagedPidFileNamesNobody) {
  std::ofstream(test_.directory() / "run" / "cut.pid") << "";
  std::ofstream(test_.directory() / "run" / "junk.pid") << "abc def";
  std::ofstream(test_.directory() / "run" / "negative.pid") << "-1 5";
  const auto list = table_.List().value();
  ASSERT_EQ(list.size(), 3U);
  for (const auto& process : list) EXPECT_FALSE(process.IsAlive()) << process.name;
  EXPECT_TRUE(table_.Stop(list, milliseconds(0), test_.environment()).ok());
}

TEST_F(ProcessTableTest, WhatADaemonLeftBehindInItsSessionEndsWithIt) {
  test_.environment().program_directory =
      std::filesystem::canonical("/bin/sleep").parent_path().string();
  const auto process = StartShell("parent", "sleep 61 & echo $!; exec sleep 60");
  ASSERT_TRUE(process.ok());
  ASSERT_TRUE(WaitForLog("parent", "\n"));
  const pid_t child = std::stoi(Log("parent"));
  ASSERT_TRUE(StartTimeOf(child).has_value());
  ASSERT_TRUE(table_.Stop({*process}, milliseconds(3000), test_.environment()).ok());
  EXPECT_FALSE(StartTimeOf(child).has_value());
}

}  // namespace
}  // namespace ps::cli
