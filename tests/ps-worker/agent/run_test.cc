// The program ps-worker with a real ZooKeeper.
#include "ps-worker/agent/run.h"

#include <signal.h>

#include "common/zookeeper/session.h"
#include "tests/ps-worker/agent/agent_fixture.h"
#include "tests/support/child_process.h"
#include "tests/support/zookeeper_server.h"

namespace ps::worker {
namespace {

using control::Body;

class RunTest : public AgentTest {
 protected:
  std::unique_ptr<test::ChildProcess> StartProgram(const std::string& zookeeper) {
    test::ChildProcess::Options options;
    options.argv = {PS_WORKER,
                    "--zookeeper",
                    zookeeper,
                    "--session-timeout-ms",
                    "2000",
                    "--name",
                    "node-9",
                    "--slots",
                    "3",
                    "--state-dir",
                    (directory_ / "state").string(),
                    "--retention-dir",
                    (directory_ / "rings").string(),
                    "--task-binary",
                    PS_FAKE_TASK,
                    "--bind",
                    "localhost"};
    options.output = directory_ / "output";
    auto child = test::ChildProcess::Start(options);
    EXPECT_TRUE(child.ok());
    return std::move(*child);
  }
};

TEST_F(RunTest, FindsTheLeaderRunsTasksAndStopsOnSigterm) {
  auto server = test::ZooKeeperServer::Start();
  ASSERT_TRUE(server.ok()) << server.error().message;
  zk::Session::Options options;
  options.hosts = (*server)->address() + "/ds";
  zk::Session session(loop_.context(), options);
  ASSERT_TRUE(session.Start().ok());
  bool created = false;
  session.EnsurePath("/coordinators", [&](Status) {
    session.Create("/coordinators/c-", R"({"control":")" + coordinator_->endpoint() + R"("})",
                   zk::CreateMode::kEphemeralSequential, [&](Result<std::string> path) {
                     EXPECT_TRUE(path.ok());
                     created = true;
                   });
  });
  ASSERT_TRUE(Until([&] { return created; }));
  const auto program = StartProgram(options.hosts);
  const control::MessageT message = coordinator_->Await(Body::RegisterAgent);
  const auto& registration = *message.body.AsRegisterAgent();
  EXPECT_EQ(registration.name, "node-9");
  EXPECT_EQ(registration.slots, 3u);
  EXPECT_EQ(registration.host, "localhost");
  std::vector<std::string> agents;
  for (int i = 0; i < 200 && agents.empty(); ++i) {
    session.Children("/agents", [&](Result<std::vector<std::string>> names) {
      if (names.ok()) agents = *names;
    });
    loop_.RunUntil([&] { return !agents.empty(); }, net::Milliseconds(50));
  }
  EXPECT_EQ(agents, std::vector<std::string>{registration.procid});
  SendStart();
  coordinator_->Await(Body::TaskReady);
  program->Signal(SIGTERM);
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->status, 0);
  EXPECT_EQ(program->Wait(std::chrono::milliseconds(20'000)), 0) << program->Output();
}

TEST_F(RunTest, SaysThatZooKeeperIsAwayAndKeepsTrying) {
  const auto program = StartProgram(test::UnreachableAddress() + "/ds");
  const auto says_so = [&] { return program->Output().find("ZooKeeper at") != std::string::npos; };
  for (int i = 0; i < 75 && !says_so(); ++i) program->Wait(std::chrono::milliseconds(200));
  EXPECT_TRUE(says_so()) << program->Output();
  EXPECT_TRUE(program->Running());
  EXPECT_EQ(program->Terminate(std::chrono::milliseconds(10'000)), 0) << program->Output();
}

TEST_F(RunTest, WrongFlagsAreAUsageErrorAndWhatTheyMeanMayBeAConfigurationError) {
  test::ChildProcess::Options options;
  options.argv = {PS_WORKER, "--slots", "0"};
  EXPECT_EQ(test::RunProgram(options, std::chrono::milliseconds(10'000))->exit, 64);
  options.argv = {PS_WORKER, "--no-such-flag"};
  EXPECT_EQ(test::RunProgram(options, std::chrono::milliseconds(10'000))->exit, 64);
  options.argv = {PS_WORKER, "--zookeeper", "", "--state-dir", (directory_ / "s").string()};
  EXPECT_EQ(test::RunProgram(options, std::chrono::milliseconds(10'000))->exit, 78);
  options.argv = {PS_WORKER, "--version"};
  EXPECT_EQ(test::RunProgram(options, std::chrono::milliseconds(10'000))->exit, 0);
}

TEST_F(RunTest, AStateDirectoryThatCannotBeMadeIsNamed) {
  test::ChildProcess::Options options;
  options.argv = {PS_WORKER, "--state-dir", "/proc/nothing"};
  const Result<test::Finished> finished =
      test::RunProgram(options, std::chrono::milliseconds(10'000));
  EXPECT_EQ(finished->exit, 73);
  EXPECT_NE(finished->output.find("/proc/nothing"), std::string::npos) << finished->output;
}

}  // namespace
}  // namespace ps::worker
