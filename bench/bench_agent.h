// ds-bench as a worker node of a running cluster: an agent whose tasks are this process.
//
// It registers with a label of its own, so that only jobs that name it come here, and no other job
// loses a slot or gets one that soon goes. It answers the check of a job with the model that it was
// offered, and says that a task is ready as soon as it is given one; the pushes are made elsewhere
// (load_worker.h). When this process dies its node in ZooKeeper goes with it: a job that allows no
// restarts has then failed, and the servers drop what they hold of it.
// It has a thread of its own; all methods may be called from any other.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/net/control_client.h"
#include "common/net/loop.h"
#include "common/result.h"

namespace ps::bench {

class BenchAgent {
 public:
  struct Settings {
    std::string zookeeper;  // HOST:PORT,.../CHROOT
    std::string name;       // also its label
    std::string procid;
    std::string host;
    std::uint32_t slots = 1;
    net::SecurityOptions security;  // the key of a worker
    std::string zookeeper_secret;   // file; empty: none
  };
  struct Task {
    std::uint64_t number = 0;  // the coordinator's
    JobId job;
    std::uint32_t worker = 0;
    Incarnation incarnation;
    std::uint32_t generation = 0;
    Clock first_clock;
    std::uint64_t token = 0;  // of the job's data plane
    bool started = false;
  };
  struct Started {
    std::vector<Task> tasks;  // by worker
    control::MapT map;
  };

  // Begins to announce itself; who waits for it to be registered asks the coordinator.
  // kInvalid if `zookeeper` is malformed.
  static Result<std::unique_ptr<BenchAgent>> Start(Settings settings);
  ~BenchAgent();  // leaves the cluster
  BenchAgent(const BenchAgent&) = delete;
  BenchAgent& operator=(const BenchAgent&) = delete;

  const Settings& settings() const { return settings_; }

  // What the next job is; what was known of the one before is forgotten.
  void Offer(control::LayoutT model, const control::DataInfoT& data);
  // Once all `workers` tasks of the job are live.
  std::optional<Started> TakeStarted(std::uint32_t workers);
  // From now on called with each newer map of the started job, on the agent's thread; null: not any
  // more, and then it does not run any more either.
  void OnMap(std::function<void(const control::MapT&)> fn);
  // Rounds of the started job's checkpoints.
  struct RoundNews {
    enum class What { kBegun, kAborted, kCommitted };
    What what = What::kBegun;
    std::uint32_t worker = 0;
    std::uint64_t round = 0;
    std::string reason{};  // kAborted
  };
  // From now on called with them, for each worker, as OnMap is. A round waits until SayCut() was
  // called for every worker.
  void OnRound(std::function<void(const RoundNews&)> fn);
  // Asks for a checkpoint, and says where a worker's pushes are cut. Any thread.
  void WantCheckpoint();
  void SayCut(std::uint64_t task, std::uint64_t round, Clock cut);
  // Why the job that was started cannot be measured any more; empty: it can.
  std::string trouble() const;
  // Why ZooKeeper does not answer; empty: it does.
  std::string zookeeper_trouble() const;

 private:
  explicit BenchAgent(Settings settings) : settings_(std::move(settings)) {}

  void RunThread();
  control::MessageT Registration() const;
  void OnMessage(control::MessageT message);
  void OnPreflight(const control::PreflightT& preflight);
  void OnStartTask(const control::StartTaskT& start);
  void OnTaskStart(std::uint64_t number, const control::TaskStartT& start);
  void OnJobUpdate(std::uint64_t number, const control::JobUpdateT& update);
  void OnStopTask(const control::StopTaskT& stop);
  void TellRound(std::uint64_t number, RoundNews news);
  void SayReady();
  void Send(const control::MessageT& message);

  const Settings settings_;
  net::Loop loop_;
  net::ControlClient* client_ = nullptr;  // the thread's
  std::promise<Status> begun_;

  struct Offered {
    control::LayoutT model;
    control::DataInfoT data;
  };
  mutable std::mutex mutex_;             // guards what follows
  std::optional<Offered> offered_;       // what a check is answered with
  std::map<std::uint64_t, Task> tasks_;  // by the coordinator's number
  std::optional<control::MapT> map_;     // the newest
  std::function<void(const control::MapT&)> on_map_;
  std::function<void(const RoundNews&)> on_round_;
  std::string trouble_;
  std::string zookeeper_trouble_ = "not connected yet";

  std::thread thread_;
};

}  // namespace ps::bench
