#include "cli/local_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(LocalClusterTest, SizesKeepWhatWasThereBefore) {
  LocalConfig config = ApplySizes(LocalConfig{}, LocalSizes{});
  EXPECT_EQ(config.servers, 2);
  EXPECT_EQ(config.workers(), 2);
  EXPECT_EQ(config.agents, 2);
  EXPECT_EQ(config.http_ports.size(), 1U);
  LocalSizes sizes;
  sizes.servers = 5;
  sizes.coordinators = 3;
  config.http_ports = {7070};
  config = ApplySizes(config, sizes);
  EXPECT_EQ(config.servers, 5);
  EXPECT_EQ(config.workers(), 2);
  EXPECT_THAT(config.http_ports, ElementsAre(7070, 0, 0));
}

TEST(LocalClusterTest, WorkersAreSpreadOverTheAgents) {
  LocalSizes sizes;
  sizes.workers = 4;
  EXPECT_EQ(ApplySizes(LocalConfig{}, sizes).agents, 4);
  sizes.agents = 2;
  EXPECT_EQ(ApplySizes(LocalConfig{}, sizes).slots, 2);
  sizes.workers = 5;
  EXPECT_EQ(ApplySizes(LocalConfig{}, sizes).slots, 3) << "not fewer than asked for";
  sizes.workers.reset();
  sizes.agents = 3;
  EXPECT_EQ(ApplySizes(LocalConfig{}, sizes).workers(), 3);
  sizes.workers = 1;
  EXPECT_EQ(ApplySizes(LocalConfig{}, sizes).agents, 1) << "none without a slot";
}

TEST(LocalClusterTest, MissingProgramsAreNamed) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"local", "up", "--dir", (test.directory() / "a cluster").string()}), 3);
  EXPECT_THAT(test.errors(), HasSubstr("coordinator, ps-server, ps-worker, ps-task"));
}

void AddPrograms(TestEnvironment& test, const std::string& script) {
  for (const char* name : {"coordinator", "ps-server", "ps-worker", "ps-task", "java/bin/java"}) {
    const std::string path = test.Write(name, "#!/bin/sh\n" + script);
    fs::permissions(path, fs::perms::owner_all);
  }
  test.UseRealTime();
}

TEST(LocalClusterTest, MissingJavaNamesThePackages) {
  TestEnvironment test;
  AddPrograms(test, "");
  test.Set("PATH", "/nowhere:" + test.directory().string());
  EXPECT_EQ(test.Run({"local", "up", "--dir", (test.directory() / "c").string()}), 3);
  EXPECT_THAT(test.errors(), HasSubstr("apt-get install zookeeper"));
}

TEST(LocalClusterTest, AProcessThatEndsIsShownWithTheEndOfItsLog) {
  if (!fs::exists("/usr/share/java/zookeeper.jar")) GTEST_SKIP() << "no ZooKeeper here";
  TestEnvironment test;
  AddPrograms(test, "echo cannot work today; exit 1\n");
  test.Set("JAVA_HOME", (test.directory() / "java").string());
  const fs::path directory = test.directory() / "a cluster";
  EXPECT_EQ(test.Run({"local", "up", "--dir", directory.string()}), 1) << test.errors();
  EXPECT_THAT(test.errors(), HasSubstr("zookeeper ended while ZooKeeper was waited for"));
  EXPECT_THAT(test.errors(), HasSubstr("cannot work today"));
  EXPECT_FALSE(fs::exists(ContextPath(test.environment())));
}

TEST(LocalClusterTest, WhatDoesNotGetReadyIsNamedAndStopped) {
  if (!fs::exists("/usr/share/java/zookeeper.jar")) GTEST_SKIP() << "no ZooKeeper here";
  TestEnvironment test;
  AddPrograms(test, "exec sleep 60\n");
  test.Set("JAVA_HOME", (test.directory() / "java").string());
  const fs::path directory = test.directory() / "a cluster";
  EXPECT_EQ(test.Run({"local", "up", "--dir", directory.string(), "--timeout", "300ms"}), 124);
  EXPECT_THAT(test.errors(), HasSubstr("for ZooKeeper: 127.0.0.1:"));
  const LocalCluster cluster(test.environment(), directory);
  EXPECT_FALSE(cluster.AnyAlive().value());
  EXPECT_TRUE(cluster.Processes().value().empty());
}

TEST(LocalClusterTest, ASecondClusterInTheSameDirectoryIsRefused) {
  TestEnvironment test;
  AddPrograms(test, "exec sleep 60\n");
  test.Set("JAVA_HOME", (test.directory() / "java").string());
  if (!fs::exists("/usr/share/java/zookeeper.jar")) GTEST_SKIP() << "no ZooKeeper here";
  const fs::path directory = test.directory() / "c";
  fs::create_directories(directory / "run");
  const ProcessTable table(directory / "run");
  const auto process = table.Start(
      DaemonSpec{"server-1", {"/bin/sleep", "60"}, test.directory(), test.directory() / "log"});
  ASSERT_TRUE(process.ok());
  EXPECT_EQ(test.Run({"local", "up", "--dir", directory.string()}), 4);
  EXPECT_THAT(test.errors(), HasSubstr("a cluster runs in " + directory.string() + " (server-1)"));
  test.Write("c/cluster.json", R"({"coordinators": 1, "servers": 1, "agents": 1, "slots": 1,
      "lanes": 1, "zookeeper_port": 2181, "http_ports": [7070]})");
  EXPECT_EQ(test.Run({"local", "status", "--dir", directory.string()}), 0);
  EXPECT_THAT(test.output(), HasSubstr("server-1"));
  EXPECT_THAT(test.output(), HasSubstr("running"));
  EXPECT_EQ(test.Run({"local", "down", "--dir", directory.string(), "--purge"}), 0)
      << test.errors();
  EXPECT_FALSE(process->IsAlive());
  EXPECT_FALSE(fs::exists(directory));
}

TEST(LocalClusterTest, SessionsOfLessThanTwoTicksAreAUsageError) {
  for (const char* time : {"900ms", "11s", "fast"}) {
    TestEnvironment test;
    EXPECT_EQ(test.Run({"local", "up", "--session-timeout", time, "--dir",
                        (test.directory() / "c").string()}),
              2)
        << time;
    EXPECT_FALSE(fs::exists(test.directory() / "c"));
  }
}

TEST(LocalClusterTest, DownAndStatusWithoutAClusterSayNotFound) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"local", "down"}), 3);
  EXPECT_THAT(test.errors(), HasSubstr("there is no local cluster in"));
  EXPECT_EQ(test.Run({"local", "status"}), 3);
}

TEST(LocalClusterTest, PurgeRemovesOnlyWhatAClusterMade) {
  TestEnvironment test;
  const std::string mine = test.Write("c/mine.txt", "precious");
  test.Write("c/checkpoints/x", "");
  test.Write("c/cluster.json", "{}");
  EXPECT_EQ(test.Run({"local", "down", "--purge", "--dir", (test.directory() / "c").string()}), 0);
  EXPECT_TRUE(fs::exists(mine));
  EXPECT_FALSE(fs::exists(test.directory() / "c/checkpoints"));
}

TEST(LocalClusterTest, ADamagedConfigurationIsInvalid) {
  for (const char* text :
       {"", "[]", "{}", R"({"coordinators": 2, "servers": 1, "agents": 1, "slots": 1, "lanes": 1,
        "zookeeper_port": 1, "http_ports": [1]})",
        R"({"coordinators": 1, "servers": 1000000, "agents": 1, "slots": 1, "lanes": 1,
        "zookeeper_port": 1, "http_ports": [1]})",
        R"({"coordinators": 1, "servers": 1, "agents": 1, "slots": 1, "lanes": 1,
        "zookeeper_port": 1, "http_ports": ["x"]})",
        R"({"coordinators": 1, "servers": 1, "agents": 1, "slots": 1, "lanes": 1, "session_ms": 1,
        "zookeeper_port": 1, "http_ports": [1]})"}) {
    TestEnvironment test;
    test.Write("c/cluster.json", text);
    const LocalCluster cluster(test.environment(), test.directory() / "c");
    EXPECT_EQ(cluster.ReadConfig().error().code, ErrorCode::kInvalid) << text;
  }
}

}  // namespace
}  // namespace ps::cli
