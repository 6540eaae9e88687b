// An agent and a coordinator that the test plays, on one loop.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/job/job_spec.h"
#include "common/net/context.h"
#include "common/net/zmq_socket.h"
#include "ps-worker/agent/agent.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {

constexpr net::Milliseconds kPatience{20'000};

inline std::string LedgerSpec(const std::string& name) {
  const Result<JobSpec> spec = ParseJobYaml("apiVersion: ds/v1\nkind: TrainJob\nname: " + name +
                                                "\nmodel: {type: ledger, blocks: 4}\n"
                                                "data:\n  train: {format: counter, records: 100}\n"
                                                "training: {workers: 1, threads_per_worker: 2}\n"
                                                "resources: {retention_mebibytes: 1}\n",
                                            "job.yaml", "/");
  EXPECT_TRUE(spec.ok()) << (spec.ok() ? "" : spec.error().message);
  return spec.ok() ? ResolvedJson(*spec) : "";
}

// The leader's side of the control plane.
class FakeCoordinator {
 public:
  FakeCoordinator(net::Loop& loop, net::Context& context, std::uint64_t leader_epoch = 1)
      : loop_(loop), leader_epoch_(leader_epoch) {
    socket_ = net::ZmqSocket::Open(loop, context, net::ZmqKind::kRouter).value();
    socket_->OnReceive([this](net::ZmqSocket::Frames&& frames) { OnReceive(std::move(frames)); });
    endpoint_ = *socket_->Bind("tcp://127.0.0.1:0");
  }

  const std::string& endpoint() const { return endpoint_; }

  void Send(control::MessageT message) {
    message.leader_epoch = leader_epoch_;
    net::ZmqSocket::Frames frames;
    frames.push_back(net::CopyFrame(agent_.data(), agent_.size()));
    frames.push_back(net::TakeFrame(control::Encode(message)));
    const Status sent = socket_->Send(std::move(frames));
    EXPECT_TRUE(sent.ok()) << (sent.ok() ? "" : sent.error().message);
  }

  // The next message of this kind; what came before it is dropped.
  control::MessageT Await(control::Body kind) {
    control::MessageT found;
    const bool in_time = loop_.RunUntil(
        [&] {
          while (!messages_.empty()) {
            found = std::move(messages_.front());
            messages_.pop_front();
            if (found.body.type == kind) return true;
          }
          return false;
        },
        kPatience);
    EXPECT_TRUE(in_time) << "no " << control::EnumNameBody(kind) << " came";
    if (!in_time) {
      ADD_FAILURE();
      std::abort();
    }
    return found;
  }
  // Kinds that came since the last Await.
  std::vector<control::Body> Kinds() const {
    std::vector<control::Body> kinds;
    for (const control::MessageT& message : messages_) kinds.push_back(message.body.type);
    return kinds;
  }

 private:
  void OnReceive(net::ZmqSocket::Frames&& frames) {
    ASSERT_EQ(frames.size(), 2u);
    agent_.assign(static_cast<const char*>(frames[0].data()), frames[0].size());
    Result<control::MessageT> message =
        control::Decode({static_cast<const std::byte*>(frames[1].data()), frames[1].size()});
    ASSERT_TRUE(message.ok()) << message.error().message;
    if (message->body.type == control::Body::RegisterAgent) {
      control::WelcomeT welcome;
      welcome.leader_epoch = leader_epoch_;
      welcome.heartbeat_ms = 60'000;
      Send(control::Make(std::move(welcome)));
    }
    messages_.push_back(std::move(*message));
  }

  net::Loop& loop_;
  const std::uint64_t leader_epoch_;
  std::unique_ptr<net::ZmqSocket> socket_;
  std::string endpoint_;
  std::string agent_;
  std::deque<control::MessageT> messages_;
};

class AgentTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kTask = (std::uint64_t{3} << 32) | 7;

  void SetUp() override {
    options_.name = "node-1";
    options_.procid = "procid-1";
    options_.host = "localhost";
    options_.version = "test";
    options_.slots = 2;
    options_.state_directory = directory_ / "state";
    options_.retention_directory = directory_ / "rings";
    options_.task_binary = PS_FAKE_TASK;
    options_.task.stop_grace = net::Milliseconds(300);
    options_.task.term_grace = net::Milliseconds(300);
    coordinator_ = std::make_unique<FakeCoordinator>(loop_, context_);
  }

  void StartAgent() {
    Result<std::unique_ptr<Agent>> agent = Agent::Create(loop_, context_, options_);
    ASSERT_TRUE(agent.ok()) << agent.error().message;
    agent_ = std::move(*agent);
    agent_->SetLeader(coordinator_->endpoint());
  }
  // StartTask of task 7 of job 3, or another incarnation.
  void SendStart(std::uint32_t incarnation = 7, std::uint32_t worker = 0) {
    control::StartTaskT start;
    start.task = (std::uint64_t{3} << 32) | incarnation;
    start.job = 3;
    start.job_name = "ledger";
    start.worker = worker;
    start.incarnation = incarnation;
    start.generation = 1;
    start.spec_json = LedgerSpec("ledger");
    coordinator_->Send(control::Make(std::move(start)));
  }
  // Makes the task train, so that it leaves a ring of three pushes after clock 100.
  void SendTaskStart(std::uint64_t task = kTask) {
    control::TaskStartT start;
    start.start = std::make_unique<control::JobStartT>();
    start.start->job = 3;
    start.start->generation = 1;
    start.incarnation = static_cast<std::uint32_t>(task);
    start.first_clock = 100;
    coordinator_->Send(control::Make(std::move(start), task));
  }
  void SendEvaluate(std::uint64_t round, std::uint64_t task = kTask) {
    control::EvaluateT evaluate;
    evaluate.round = round;
    coordinator_->Send(control::Make(std::move(evaluate), task));
  }
  // A task that has pushed and was killed.
  control::MessageT RunAndKillTask() {
    SendStart();
    coordinator_->Await(control::Body::TaskReady);
    SendTaskStart();
    coordinator_->Await(control::Body::LeaseRequest);
    SendEvaluate(999);
    return coordinator_->Await(control::Body::TaskExited);
  }
  // Of the one running task, from a new registration.
  pid_t PidOfTask() {
    agent_->SetLeader("");
    agent_->SetLeader(coordinator_->endpoint());
    const control::MessageT message = coordinator_->Await(control::Body::RegisterAgent);
    const auto& tasks = message.body.AsRegisterAgent()->tasks;
    EXPECT_EQ(tasks.size(), 1u);
    return tasks.size() == 1 ? static_cast<pid_t>(tasks[0]->pid) : -1;
  }
  bool Until(const std::function<bool()>& done) { return loop_.RunUntil(done, kPatience); }
  std::filesystem::path RingPath(std::uint32_t incarnation = 7) const {
    return directory_ / "rings" / ("job-3-0-" + std::to_string(incarnation) + ".ring");
  }

  test::TempDirectory directory_{"agent"};
  net::Loop loop_;
  net::Context context_;
  AgentOptions options_;
  std::unique_ptr<FakeCoordinator> coordinator_;
  std::unique_ptr<Agent> agent_;
};

}  // namespace ps::worker
