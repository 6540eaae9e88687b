#include "bench/load.h"

#include <algorithm>
#include <fstream>
#include <thread>

#include "bench/clock.h"

namespace ps::bench {
namespace {

constexpr double kAskWhetherToGiveUp = 0.05;  // seconds

Status Sleep(double seconds, const std::function<std::string()>& give_up) {
  const std::uint64_t end = NowNs() + Nanoseconds(seconds);
  for (std::uint64_t now = NowNs(); now < end; now = NowNs()) {
    const double left = static_cast<double>(end - now) / 1e9;
    std::this_thread::sleep_for(
        std::chrono::duration<double>(give_up ? std::min(left, kAskWhetherToGiveUp) : left));
    if (!give_up) continue;
    if (const std::string why = give_up(); !why.empty()) return Error{ErrorCode::kClosed, why};
  }
  return Ok();
}

// Of this process; 0 where the system does not tell.
double ResidentMib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kib = 0;
    if (word == "VmRSS:" && status >> kib) return kib / 1024;
  }
  return 0;
}

using Phase = LoadWorker::Phase;

void SetPhase(const std::vector<std::unique_ptr<LoadWorker>>& workers, Phase phase) {
  for (const auto& worker : workers) worker->Measure(phase);
}

std::uint64_t Finished(const std::vector<std::unique_ptr<LoadWorker>>& workers) {
  std::uint64_t sum = 0;
  for (const auto& worker : workers) sum += worker->finished();
  return sum;
}

// Windows without and with a checkpoint, in turn.
Status RunWindows(const std::vector<std::unique_ptr<LoadWorker>>& workers, const Options& options,
                  const Checkpoints& checkpoints, const Say& say,
                  const std::function<std::string()>& give_up, Row& row) {
  const auto pairs = std::max<std::uint64_t>(
      1, static_cast<std::uint64_t>(options.seconds / options.checkpoint_seconds / 2));
  for (std::uint64_t pair = 0; pair < pairs; ++pair) {
    const std::uint64_t begin = NowNs();
    const std::uint64_t finished_at_begin = Finished(workers);
    SetPhase(workers, Phase::kPlain);
    PS_TRY(Sleep(options.checkpoint_seconds, give_up));
    const std::uint64_t asked = NowNs();
    const std::uint64_t finished_when_asked = Finished(workers);
    row.seconds += static_cast<double>(asked - begin) / 1e9;
    const std::uint64_t before = checkpoints.committed();
    SetPhase(workers, Phase::kWriting);
    checkpoints.want();
    const std::uint64_t end = asked + Nanoseconds(options.checkpoint_seconds);
    while (checkpoints.committed() == before) {
      if (NowNs() >= end) {
        const std::string why = checkpoints.trouble();
        return Error{ErrorCode::kTimeout, "no checkpoint was committed within " +
                                              std::to_string(options.checkpoint_seconds) + " s" +
                                              (why.empty() ? "" : ": " + why)};
      }
      PS_TRY(Sleep(0.002, give_up));
    }
    const std::uint64_t written = NowNs();
    SetPhase(workers, Phase::kWritten);
    row.checkpoints.writing_seconds += static_cast<double>(written - asked) / 1e9;
    ++row.checkpoints.count;
    say("checkpoint " + std::to_string(row.checkpoints.count) + " of " + std::to_string(pairs) +
        ": " + std::to_string((written - asked) / 1'000'000) + " ms");
    if (written < end) PS_TRY(Sleep(static_cast<double>(end - written) / 1e9, give_up));
    const std::uint64_t now = NowNs();
    row.checkpoints.seconds += static_cast<double>(now - asked) / 1e9;
    const double plain = static_cast<double>(finished_when_asked - finished_at_begin) /
                         static_cast<double>(asked - begin);
    const double with = static_cast<double>(Finished(workers) - finished_when_asked) /
                        static_cast<double>(now - asked);
    row.checkpoints.losses_percent.push_back(plain > 0 ? 100 * (plain - with) / plain : 0);
  }
  return Ok();
}

}  // namespace

Result<std::uint64_t> RunLoad(const std::vector<std::unique_ptr<LoadWorker>>& workers,
                              const Options& options, Operation operation, const Plan& plan,
                              const Say& say, const std::function<std::string()>& give_up,
                              const std::function<Status()>& connected,
                              const Checkpoints* checkpoints, Row& row) {
  const bool overload = operation == Operation::kOverload;
  for (const auto& worker : workers) PS_TRY(worker->Connect());
  say(plan.row_width > 0 ? "connected, the table has its " + std::to_string(plan.keys) + " rows"
                         : "connected, every shard has its values");
  if (connected) PS_TRY(connected());
  const double memory_before = ResidentMib();
  for (const auto& worker : workers) worker->Start();
  PS_TRY(Sleep(options.warm_up_seconds, give_up));
  if (checkpoints != nullptr) {
    PS_TRY(RunWindows(workers, options, *checkpoints, say, give_up, row));
  } else {
    const std::uint64_t begin = NowNs();
    SetPhase(workers, Phase::kPlain);
    PS_TRY(Sleep(options.seconds, give_up));
    row.seconds = static_cast<double>(NowNs() - begin) / 1e9;
  }
  SetPhase(workers, Phase::kNone);
  row.memory_growth_mib = std::max(0.0, ResidentMib() - memory_before);
  std::uint64_t pushes = 0;
  for (std::size_t number = 0; number < workers.size(); ++number) {
    const LoadWorker::Measured measured = PS_TRY(workers[number]->Stop());
    pushes += measured.pushes;
    if (overload && number + 1 < workers.size()) {
      row.pushes += measured.of(Phase::kPlain).operations;
      continue;
    }
    row.operations += measured.of(Phase::kPlain).operations;
    row.latency.Add(measured.of(Phase::kPlain).latency);
    for (const Phase phase : {Phase::kWriting, Phase::kWritten}) {
      row.checkpoints.operations += measured.of(phase).operations;
      row.checkpoints.latency.Add(measured.of(phase).latency);
    }
    row.checkpoints.writing.Add(measured.of(Phase::kWriting).latency);
  }
  say("stopped; checking what was applied");

  row.operation = operation;
  row.carrier = Carrier::kDs;
  const bool moves_push = operation != Operation::kOverload && Pushes(operation);
  const std::uint64_t value_bytes = plan.values == wire::ValueCodec::Fp32 ? 4 : 2;
  row.bytes = moves_push || plan.row_width > 0 ? plan.value_bytes : plan.parameters * value_bytes;
  row.entries = moves_push ? plan.entries : 0;
  row.rows = plan.rows;
  row.row_width = plan.row_width;
  row.window = options.window;
  row.workers = options.workers;
  return pushes;
}

Status CheckPushes(std::uint64_t applied, std::uint64_t told, const Plan& plan) {
  const std::uint64_t expected = told * plan.layout.shard_count();
  if (applied == expected) return Ok();
  return Error{ErrorCode::kInternal, "the shards applied " + std::to_string(applied) +
                                         " pushes, the workers were told " +
                                         std::to_string(expected)};
}

}  // namespace ps::bench
