#include "coordinator/shell/metrics.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "common/net/metric_families.h"

namespace ps::coordinator {
namespace {

using nlohmann::json;
using prometheus::MetricType;

struct JobMetric {
  const char* name;
  const char* help;
  MetricType type;
  const char* path;  // in Core::DescribeJob(); null or missing: no sample
  double scale = 1;
};

constexpr JobMetric kJobMetrics[] = {
    {"job_generation", "How often the job has gone back to a checkpoint as a whole.",
     MetricType::Gauge, "/generation"},
    {"job_task_restarts_total", "Tasks that ended and were started again.", MetricType::Counter,
     "/restarts"},
    {"job_shards", "Shards of the job.", MetricType::Gauge, "/shards"},
    {"job_replicated_shards", "Shards that have all their backups.", MetricType::Gauge,
     "/replicated_shards"},
    {"job_samples", "Records to train, over all epochs.", MetricType::Gauge,
     "/progress/samples_total"},
    {"job_samples_trained_total", "Records trained.", MetricType::Counter,
     "/progress/samples_trained"},
    {"job_samples_repeated_total", "Of these, known to be trained twice.", MetricType::Counter,
     "/progress/repeated_samples"},
    {"job_samples_per_second", "Of all workers.", MetricType::Gauge,
     "/progress/samples_per_second"},
    {"job_loss", "Mean over the workers of the loss of their latest steps.", MetricType::Gauge,
     "/progress/loss"},
    {"job_steps_total", "Steps of all workers.", MetricType::Counter, "/progress/steps"},
    {"job_steps_skipped_total", "Steps whose gradient was not finite.", MetricType::Counter,
     "/progress/skipped"},
    {"job_steps_overflowed_total", "Steps skipped as the scaled gradient was not finite.",
     MetricType::Counter, "/progress/overflows"},
    {"job_steps_implausible_total", "Steps whose loss or gradient norm was implausible.",
     MetricType::Counter, "/progress/implausible"},
    {"job_steps_redone_total", "Of these, plausible when they were computed again in fp32.",
     MetricType::Counter, "/progress/implausible_redone"},
    {"job_batches_implausible_skipped_total", "Of these, batches that were skipped.",
     MetricType::Counter, "/progress/implausible_skipped"},
    {"job_segments_too_old_total", "Parts of pushes that went back into the residual.",
     MetricType::Counter, "/progress/too_old"},
    {"job_push_bytes_total", "Bytes of pushes.", MetricType::Counter, "/progress/push_bytes"},
    {"job_pull_bytes_total", "Bytes of answers to pulls.", MetricType::Counter,
     "/progress/pull_bytes"},
    {"job_min_clock", "Clock of the slowest worker.", MetricType::Gauge, "/progress/min_clock"},
    {"job_checkpoints", "Committed checkpoints that are kept.", MetricType::Gauge, "/checkpoints"},
    {"job_checkpoint_step", "Step of the newest one.", MetricType::Gauge, "/last_checkpoint/step"},
    {"job_checkpoint_bytes", "Bytes written for it.", MetricType::Gauge, "/last_checkpoint/bytes"},
    {"job_checkpoint_duration_seconds", "From its begin to its commit.", MetricType::Gauge,
     "/last_checkpoint/duration_ms", 1e-3},
    {"job_checkpoint_age_seconds", "Since its commit.", MetricType::Gauge,
     "/checkpoint_age_seconds"},
    {"job_recoveries_total", "Losses of servers that were mended.", MetricType::Counter,
     "/recoveries/count"},
    {"job_recovery_seconds_total", "From the notice of a loss until all shards were served again.",
     MetricType::Counter, "/recoveries/seconds"},
};

constexpr JobMetric kWorkerMetrics[] = {
    {"worker_clock", "Steps pushed by the task.", MetricType::Gauge, "/clock"},
    {"worker_samples_per_second", "Of the task.", MetricType::Gauge, "/samples_per_second"},
    {"worker_loss", "Of its latest steps.", MetricType::Gauge, "/loss"},
    {"worker_staleness_p99", "Clocks that its values were behind.", MetricType::Gauge,
     "/staleness_p99"},
    {"worker_residual_norm", "Of what it has not pushed yet.", MetricType::Gauge, "/residual_norm"},
    {"worker_loss_scale", "What it multiplies its loss with.", MetricType::Gauge, "/loss_scale"},
    {"worker_retained_bytes", "Pushes kept until a checkpoint has them.", MetricType::Gauge,
     "/retained_bytes"},
    {"worker_wait_data_seconds_total", "Waited for data.", MetricType::Counter, "/wait_data_ms",
     1e-3},
    {"worker_wait_pull_seconds_total", "Waited for pulls.", MetricType::Counter, "/wait_pull_ms",
     1e-3},
    {"worker_longest_pull_seconds", "Longest time from a pull to its answer, of the last 30 s.",
     MetricType::Gauge, "/longest_pull_ms", 1e-3},
    {"worker_wait_push_seconds_total", "Waited for room for pushes.", MetricType::Counter,
     "/wait_push_ms", 1e-3},
    {"worker_compute_seconds_total", "Computed gradients.", MetricType::Counter, "/compute_ms",
     1e-3},
};

constexpr JobMetric kGpuMetrics[] = {
    {"gpu_utilization_ratio", "Part of the time in which the GPU had work.", MetricType::Gauge,
     "/utilization"},
    {"gpu_memory_bytes", "Of the GPU.", MetricType::Gauge, "/memory_bytes"},
    {"gpu_memory_used_bytes", "Of these, in use.", MetricType::Gauge, "/memory_used_bytes"},
    {"gpu_temperature_celsius", "Of the GPU.", MetricType::Gauge, "/temperature_celsius"},
    {"gpu_ecc_errors_total", "Errors of its memory that could not be corrected.",
     MetricType::Counter, "/ecc_errors"},
    {"gpu_throttled", "1 while heat or lack of power slows it down.", MetricType::Gauge,
     "/throttled"},
};

struct Sample {
  const json* described;
  net::MetricFamilies::Labels labels;
};

template <typename Metrics>
void Add(net::MetricFamilies& families, const Metrics& metrics,
         const std::vector<Sample>& samples) {
  for (const JobMetric& metric : metrics) {
    families.Begin(metric.name, metric.help, metric.type);
    const json::json_pointer path(metric.path);
    for (const Sample& sample : samples) {
      if (!sample.described->contains(path)) continue;
      const json& value = sample.described->at(path);
      if (value.is_number()) families.Add(value.get<double>() * metric.scale, sample.labels);
      if (value.is_boolean()) families.Add(value.get<bool>() ? 1 : 0, sample.labels);
    }
  }
}

}  // namespace

std::string MetricsText(const Core* core, std::uint64_t leader_epoch, const ApiMetrics& api) {
  net::MetricFamilies families("ps_coordinator_");
  families.Begin("leader", "1 while it leads.", MetricType::Gauge);
  families.Add(core != nullptr ? 1 : 0);
  families.Begin("api_requests_total", "Requests that were carried out.", MetricType::Counter);
  families.Add(static_cast<double>(api.requests));
  families.Begin("api_refused_total", "Requests and connections that were not.",
                 MetricType::Counter);
  for (const auto& [why, count] :
       {std::pair("token", api.refused), std::pair("role", api.forbidden),
        std::pair("bad", api.bad), std::pair("connections", api.connections),
        std::pair("handshake", api.handshakes)}) {
    families.Add(static_cast<double>(count), {{"reason", why}});
  }
  if (api.certificate_until_ms > 0) {
    families.Begin("api_certificate_expiry_timestamp_seconds",
                   "When the certificate of the API expires.", MetricType::Gauge);
    families.Add(static_cast<double>(api.certificate_until_ms) / 1000);
  }
  if (core == nullptr) return families.Text();
  families.Begin("leader_epoch", "Grows with each leader.", MetricType::Gauge);
  families.Add(static_cast<double>(leader_epoch));

  std::map<std::pair<std::string, std::string>, int> members;
  const json nodes = core->DescribeNodes();
  for (const json& node : nodes.at("nodes")) {
    ++members[{node.at("kind").get<std::string>(), node.at("state").get<std::string>()}];
  }
  families.Begin("members", "Servers and worker agents, by state.", MetricType::Gauge);
  for (const auto& [member, count] : members) {
    families.Add(count, {{"kind", member.first}, {"state", member.second}});
  }

  std::vector<Sample> of_gpus;
  families.Begin("gpu_sick", "1 if something is wrong with it: no task gets it.",
                 MetricType::Gauge);
  for (const json& node : nodes.at("nodes")) {
    if (!node.contains("gpus")) continue;
    for (const json& gpu : node.at("gpus")) {
      of_gpus.push_back({&gpu,
                         {{"node", node.at("name").get<std::string>()},
                          {"gpu", gpu.at("uuid").get<std::string>()}}});
      families.Add(gpu.at("trouble").get<std::string>().empty() ? 0 : 1, of_gpus.back().labels);
    }
  }
  Add(families, kGpuMetrics, of_gpus);

  const std::vector<json> jobs = core->DescribeOpenJobs();
  std::vector<Sample> of_jobs;
  std::vector<Sample> of_workers;
  for (const json& job : jobs) {
    const net::MetricFamilies::Labels labels = {{"job", std::to_string(job.at("id").get<int>())},
                                                {"name", job.at("name").get<std::string>()}};
    of_jobs.push_back({&job, labels});
    for (const json& worker : job.at("workers")) {
      of_workers.push_back({&worker, labels});
      of_workers.back().labels.push_back(
          {"worker", std::to_string(worker.at("worker").get<int>())});
    }
  }
  families.Begin("job_phase", "1 for the phase that the job is in.", MetricType::Gauge);
  for (const Sample& sample : of_jobs) {
    auto labels = sample.labels;
    labels.push_back({"phase", sample.described->at("phase").get<std::string>()});
    families.Add(1, std::move(labels));
  }
  Add(families, kJobMetrics, of_jobs);
  families.Begin("job_events_total", "Events of the job, by type.", MetricType::Counter);
  for (const Sample& sample : of_jobs) {
    for (const auto& [type, count] : sample.described->at("event_counts").items()) {
      auto labels = sample.labels;
      labels.push_back({"type", type});
      families.Add(count.get<double>(), std::move(labels));
    }
  }
  Add(families, kWorkerMetrics, of_workers);
  return families.Text();
}

}  // namespace ps::coordinator
