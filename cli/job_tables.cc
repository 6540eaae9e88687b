#include "cli/job_tables.h"

#include <algorithm>
#include <vector>

namespace ps::cli {

std::string PercentOf(const Json& job) {
  const Json& progress = MemberOf(job, "progress");
  const auto trained = NumberOf(progress, "samples_trained");
  const auto total = NumberOf(progress, "samples_total");
  if (!trained || !total || *total <= 0) return "-";
  return std::to_string(static_cast<int>(100.0 * *trained / *total)) + "%";
}

std::string ResultOf(const Json& job) {
  const Json& result = MemberOf(job, "result");
  const auto accuracy = NumberOf(result, "test_accuracy");
  return DecimalText(accuracy ? accuracy : NumberOf(result, "metric"));
}

void WriteJobs(std::ostream& out, const Json& jobs, bool wide) {
  std::vector<std::string> header = {"ID", "NAME", "PHASE", "DONE", "LOSS", "METRIC", "CREATED"};
  if (wide) {
    for (const char* name : {"WORKERS", "STEPS", "SAMPLES/S", "CHECKPOINTS", "REASON"}) {
      header.emplace_back(name);
    }
  }
  Table table(header);
  for (const Json& job : jobs) {
    const Json& progress = MemberOf(job, "progress");
    const bool has_result = MemberOf(job, "result").is_object();
    std::vector<std::string> row = {
        TextOf(job, "id"),
        TextOf(job, "name"),
        TextOf(job, "phase"),
        PercentOf(job),
        DecimalText(NumberOf(progress, "loss")),
        has_result ? ResultOf(job) : DecimalText(NumberOf(progress, "metric")),
        TextOf(job, "created")};
    if (wide) {
      const Json& workers = MemberOf(job, "workers");
      row.push_back(workers.is_array() ? std::to_string(workers.size()) : "");
      row.push_back(CountText(NumberOf(progress, "steps")));
      row.push_back(CountText(NumberOf(progress, "samples_per_second")));
      row.push_back(TextOf(job, "checkpoints"));
      row.push_back(TextOf(job, "reason"));
    }
    table.Add(row);
  }
  out << table.ToString();
}

void WriteWorkers(std::ostream& out, const Json& workers) {
  // Of jobs whose batches follow the speed.
  const bool shares = std::any_of(workers.begin(), workers.end(), [](const Json& worker) {
    return worker.contains("push_records");
  });
  std::vector<std::string> header = {"WORKER",    "INCARNATION", "NODE",   "STATE", "CLOCK",
                                     "SAMPLES/S", "LOSS",        "P50",    "P99",   "WAIT DATA",
                                     "WAIT PULL", "WAIT PUSH",   "COMPUTE"};
  // Of jobs that scale the loss.
  const bool scales = std::any_of(workers.begin(), workers.end(),
                                  [](const Json& worker) { return worker.contains("loss_scale"); });
  if (shares) header.insert(header.end(), {"RECORDS/PUSH", "RECORDS/COMPUTE S"});
  if (scales) header.insert(header.end(), {"PRECISION", "LOSS SCALE"});
  Table table(header);
  const auto seconds = [](const Json& worker, const char* key) {
    const auto ms = NumberOf(worker, key);
    return ms ? DecimalText(*ms / 1000.0) + "s" : std::string();
  };
  for (const Json& worker : workers) {
    std::vector<std::string> row = {TextOf(worker, "worker"),
                                    TextOf(worker, "incarnation"),
                                    TextOf(worker, "node"),
                                    TextOf(worker, "state"),
                                    CountText(NumberOf(worker, "clock")),
                                    CountText(NumberOf(worker, "samples_per_second")),
                                    DecimalText(NumberOf(worker, "loss")),
                                    DecimalText(NumberOf(worker, "staleness_p50")),
                                    DecimalText(NumberOf(worker, "staleness_p99")),
                                    seconds(worker, "wait_data_ms"),
                                    seconds(worker, "wait_pull_ms"),
                                    seconds(worker, "wait_push_ms"),
                                    seconds(worker, "compute_ms")};
    if (shares) {
      row.push_back(CountText(NumberOf(worker, "push_records")));
      row.push_back(CountText(NumberOf(worker, "compute_samples_per_second")));
    }
    if (scales) {
      row.push_back(TextOf(worker, "precision"));
      row.push_back(DecimalText(NumberOf(worker, "loss_scale")));
    }
    table.Add(row);
  }
  out << table.ToString();
}

}  // namespace ps::cli
