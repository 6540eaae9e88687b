#include "ps-server/shell/metrics.h"

#include <initializer_list>
#include <limits>
#include <map>
#include <utility>

#include "common/net/metric_families.h"

namespace ps::server {
namespace {

prometheus::ClientMetric::Histogram Histogram(const StalenessHistogram& histogram) {
  prometheus::ClientMetric::Histogram result;
  result.sample_count = histogram.count();
  result.sample_sum = static_cast<double>(histogram.sum());
  std::uint64_t up_to = 0;
  for (std::size_t i = 0; i < StalenessHistogram::kBuckets; ++i) {
    up_to += histogram.bucket(i);
    const bool last = i == StalenessHistogram::kUpTo.size();
    result.bucket.push_back({up_to, last ? std::numeric_limits<double>::infinity()
                                         : static_cast<double>(StalenessHistogram::kUpTo[i])});
  }
  return result;
}

}  // namespace

const char* CodeName(wire::Code code) {
  switch (code) {
    case wire::Code::Applied: return "applied";
    case wire::Code::TooOld: return "too-old";
    case wire::Code::NonFinite: return "non-finite";
    case wire::Code::Gap: return "gap";
    case wire::Code::WrongEpoch: return "wrong-epoch";
    case wire::Code::Blank: return "blank";
    case wire::Code::Restoring: return "restoring";
    case wire::Code::StaleMap: return "stale-map";
    case wire::Code::NotLive: return "not-live";
    case wire::Code::UnknownJob: return "unknown-job";
    case wire::Code::Malformed: return "malformed";
    case wire::Code::BadVersion: return "bad-version";
    case wire::Code::TooLarge: return "too-large";
    case wire::Code::RoundAborted: return "round-aborted";
    case wire::Code::Overloaded: return "overloaded";
    case wire::Code::Lost: return "lost";
    case wire::Code::Denied: return "denied";
  }
  return "unknown";
}

std::string MetricsText(const std::vector<LaneStatus>& lanes, const ControlCounters& control) {
  constexpr auto kCounter = prometheus::MetricType::Counter;
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  net::MetricFamilies families("ps_server_");

  struct PerLane {
    const char* name;
    const char* help;
    prometheus::MetricType type;
    std::uint64_t (*value)(const LaneStatus&);
  };
  const PerLane per_lane[] = {
      {"messages_total", "Messages received.", kCounter,
       [](const LaneStatus& lane) { return lane.messages; }},
      {"pushes_total", "Push messages taken.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.pushes; }},
      {"pulls_total", "Pulls answered.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.pulls; }},
      {"pulls_parked_total", "Pulls that had to wait for a slower worker.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.pulls_parked; }},
      {"pulls_parked", "Pulls that wait now.", kGauge,
       [](const LaneStatus& lane) { return std::uint64_t{lane.parked_pulls}; }},
      {"received_bytes_total", "Bytes of data messages received.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.bytes_in; }},
      {"sent_bytes_total", "Bytes of data messages answered.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.bytes_out; }},
      {"freezes_total", "Cuts of checkpoints taken.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.freezes; }},
      {"bad_framing_total", "Messages with a wrong number of frames.", kCounter,
       [](const LaneStatus& lane) { return lane.bad_framing; }},
      {"unroutable_total", "Answers to peers that were gone.", kCounter,
       [](const LaneStatus& lane) { return lane.unroutable; }},
      {"slow_peer_total", "Answers dropped because the peer does not read.", kCounter,
       [](const LaneStatus& lane) { return lane.slow_peer; }},
      {"unsent_chain_total", "Messages to backups dropped: no connection, or its queue was full.",
       kCounter, [](const LaneStatus& lane) { return lane.unsent_chain; }},
      {"copy_changes_total", "Changes taken by copies of shards that are first elsewhere.",
       kCounter, [](const LaneStatus& lane) { return lane.counters.copies_changed; }},
      {"copies_installed_total", "Copies of shards made from images.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.copies_installed; }},
      {"copies_broken_total", "Copies of shards given up: a change did not fit.", kCounter,
       [](const LaneStatus& lane) { return lane.counters.copies_broken; }},
      {"shards", "Shards held.", kGauge,
       [](const LaneStatus& lane) {
         std::uint64_t shards = 0;
         for (const JobStatus& job : lane.jobs) shards += job.shards.size();
         return shards;
       }},
  };
  for (const PerLane& metric : per_lane) {
    families.Begin(metric.name, metric.help, metric.type);
    for (std::size_t number = 0; number < lanes.size(); ++number) {
      families.Add(static_cast<double>(metric.value(lanes[number])),
                   {{"lane", std::to_string(number)}});
    }
  }

  LaneCounters sum;
  for (const LaneStatus& lane : lanes) sum += lane.counters;
  families.Begin("push_verdicts_total", "Verdicts of shards on pushes.", kCounter);
  families.Add(static_cast<double>(sum.pushes_applied), {{"verdict", "applied"}});
  families.Add(static_cast<double>(sum.pushes_repeated), {{"verdict", "repeated"}});
  families.Add(static_cast<double>(sum.pushes_too_old), {{"verdict", "too-old"}});
  families.Add(static_cast<double>(sum.pushes_non_finite), {{"verdict", "non-finite"}});
  families.Add(static_cast<double>(sum.pushes_gap), {{"verdict", "gap"}});
  std::map<JobId, LaneCounters> by_job;
  for (const LaneStatus& lane : lanes) {
    for (const JobStatus& job : lane.jobs) by_job[job.job] += job.counters;
  }
  families.Begin("push_clocks_ahead",
                 "Clocks that the worker was ahead of the slowest, of each applied push and shard.",
                 prometheus::MetricType::Histogram);
  for (const auto& [job, counters] : by_job) {
    families.Add(Histogram(counters.clocks_ahead), {{"job", std::to_string(job.value())}});
  }
  families.Begin("push_version_gap",
                 "Pushes applied since the values that a push was computed on, per shard.",
                 prometheus::MetricType::Histogram);
  for (const auto& [job, counters] : by_job) {
    families.Add(Histogram(counters.version_gap), {{"job", std::to_string(job.value())}});
  }
  struct PerJob {
    const char* name;
    const char* help;
    prometheus::MetricType type;
    std::uint64_t MemoryUse::*value;
  };
  const PerJob per_job[] = {
      {"dense_bytes", "Memory of dense values and their optimizer's slots.", kGauge,
       &MemoryUse::dense},
      {"change_log_bytes", "Memory of what recent pushes changed; at most half of the values.",
       kGauge, &MemoryUse::change_log},
      {"shadow_bytes", "Memory of what the workers hold, for pulls of increments.", kGauge,
       &MemoryUse::shadow},
      {"freeze_copied_bytes_total",
       "Bytes copied because a push changed what a checkpoint was being written from.", kCounter,
       &MemoryUse::copied},
  };
  std::map<JobId, MemoryUse> memory;
  for (const LaneStatus& lane : lanes) {
    for (const JobStatus& job : lane.jobs) memory[job.job] += job.memory;
  }
  for (const PerJob& metric : per_job) {
    families.Begin(metric.name, metric.help, metric.type);
    for (const auto& [job, use] : memory) {
      families.Add(static_cast<double>(use.*metric.value), {{"job", std::to_string(job.value())}});
    }
  }
  struct PerTable {
    const char* name;
    const char* help;
    prometheus::MetricType type;
    std::uint64_t RowTableStatus::*value;
  };
  const PerTable per_table[] = {
      {"rows", "Rows of an embedding table that are here.", kGauge, &RowTableStatus::rows},
      {"row_bytes", "Memory of a table's rows, its index and its sketch.", kGauge,
       &RowTableStatus::bytes},
      {"rows_pushed_total", "Rows in applied pushes.", kCounter, &RowTableStatus::pushed},
      {"rows_pulled_total", "Rows in answers to pulls.", kCounter, &RowTableStatus::pulled},
      {"rows_created_total", "Rows made by a push.", kCounter, &RowTableStatus::created},
      {"rows_rejected_total", "Pushed rows dropped: not seen often enough yet.", kCounter,
       &RowTableStatus::rejected},
      {"rows_refused_total", "Pushed rows dropped: the table was full.", kCounter,
       &RowTableStatus::refused},
      {"rows_expired_total", "Rows removed: not used for long.", kCounter,
       &RowTableStatus::expired},
      {"rows_evicted_total", "Rows removed: to make room.", kCounter, &RowTableStatus::evicted},
  };
  std::map<std::pair<JobId, std::string>, RowTableStatus> tables;
  for (const LaneStatus& lane : lanes) {
    for (const JobStatus& job : lane.jobs) {
      for (const auto& [name, status] : job.tables) tables[{job.job, name}] += status;
    }
  }
  for (const PerTable& metric : per_table) {
    families.Begin(metric.name, metric.help, metric.type);
    for (const auto& [name, status] : tables) {
      families.Add(static_cast<double>(status.*metric.value),
                   {{"job", std::to_string(name.first.value())}, {"table", name.second}});
    }
  }
  struct PerChain {
    const char* name;
    const char* help;
    prometheus::MetricType type;
    std::uint64_t (*value)(const JobStatus&);
  };
  const PerChain per_chain[] = {
      {"copies", "Copies of shards that are first elsewhere.", kGauge,
       [](const JobStatus& job) { return std::uint64_t{job.copies}; }},
      {"chain_messages_total", "Messages of changes to backups.", kCounter,
       [](const JobStatus& job) { return job.feed_counters.messages; }},
      {"chain_resent_total", "Of these, sent again.", kCounter,
       [](const JobStatus& job) { return job.feed_counters.resent; }},
      {"chain_bytes_total", "Bytes sent to backups.", kCounter,
       [](const JobStatus& job) { return job.feed_counters.bytes; }},
      {"chain_images_total", "Images of shards that backups have taken.", kCounter,
       [](const JobStatus& job) { return job.feed_counters.images; }},
      {"chain_unconfirmed_bytes", "Bytes of changes that backups have not confirmed.", kGauge,
       [](const JobStatus& job) { return std::uint64_t{job.unconfirmed_bytes}; }},
      {"chain_held_answers", "Answers that wait for backups.", kGauge,
       [](const JobStatus& job) { return std::uint64_t{job.held_answers}; }},
      {"chain_behind", "Changes of shards that their next members are not known to have.", kGauge,
       [](const JobStatus& job) {
         std::uint64_t behind = 0;
         for (const FeedStatus& feed : job.feeds) behind += feed.behind;
         return behind;
       }},
  };
  for (const PerChain& metric : per_chain) {
    std::map<JobId, std::uint64_t> values;
    for (const LaneStatus& lane : lanes) {
      for (const JobStatus& job : lane.jobs) values[job.job] += metric.value(job);
    }
    families.Begin(metric.name, metric.help, metric.type);
    for (const auto& [job, value] : values) {
      families.Add(static_cast<double>(value), {{"job", std::to_string(job.value())}});
    }
  }
  families.Begin("pulled_shards_total", "Shards in answers to pulls.", kCounter);
  families.Add(static_cast<double>(sum.shards_unchanged), {{"content", "unchanged"}});
  families.Add(static_cast<double>(sum.shards_sparse), {{"content", "sparse"}});
  families.Add(static_cast<double>(sum.shards_increments), {{"content", "increments"}});
  families.Add(static_cast<double>(sum.shards_snapshot), {{"content", "snapshot"}});
  families.Begin("refused_total", "Messages refused, by reason.", kCounter);
  for (std::size_t code = 1; code < kCodes; ++code) {
    families.Add(static_cast<double>(sum.refused[code]),
                 {{"reason", CodeName(static_cast<wire::Code>(code))}});
  }

  families.Begin("checkpoints_total", "Parts of checkpoint rounds, by outcome.", kCounter);
  families.Add(static_cast<double>(control.checkpoints_written), {{"outcome", "written"}});
  families.Add(static_cast<double>(control.checkpoints_failed), {{"outcome", "failed"}});
  families.Begin("checkpoint_bytes_total", "Bytes of checkpoints written.", kCounter);
  families.Add(static_cast<double>(control.checkpoint_bytes));
  families.Begin("checkpoint_parts_copied_total",
                 "Parts of checkpoints of other servers that were fetched.", kCounter);
  families.Add(static_cast<double>(control.parts_copied));
  families.Begin("checkpoint_copied_bytes_total", "Bytes of these.", kCounter);
  families.Add(static_cast<double>(control.copied_bytes));
  families.Begin("scrub_enabled", "1 if parts of checkpoints are read again (--scrub-rate).",
                 kGauge);
  families.Add(control.scrubs ? 1 : 0);
  families.Begin("scrubbed_bytes_total", "Bytes of these that were read.", kCounter);
  families.Add(static_cast<double>(control.scrub.bytes));
  families.Begin("scrubbed_parts_total", "Parts that were read and compared with their seals.",
                 kCounter);
  families.Add(static_cast<double>(control.scrub.parts));
  families.Begin("scrub_damaged_parts_total",
                 "Parts found damaged, one that stays so with each pass.", kCounter);
  families.Add(static_cast<double>(control.scrub.damaged));
  families.Begin("scrub_repairs_total",
                 "Damaged parts, by whether a copy of another server took their place.", kCounter);
  families.Add(static_cast<double>(control.parts_repaired), {{"outcome", "replaced"}});
  families.Add(static_cast<double>(control.repairs_failed), {{"outcome", "failed"}});
  families.Begin("scrub_passes_total", "Passes over all parts that have ended.", kCounter);
  families.Add(static_cast<double>(control.scrub.passes));
  families.Begin("scrub_last_pass_timestamp_seconds",
                 "When the last of them ended, in Unix time; 0: none has.", kGauge);
  families.Add(static_cast<double>(control.scrub.last_pass_end_ms) / 1000.0);
  families.Begin("scrub_last_pass_seconds", "How long that took.", kGauge);
  families.Add(static_cast<double>(control.scrub.last_pass_ms) / 1000.0);
  families.Begin("restores_total", "Shards restored from checkpoints, by outcome.", kCounter);
  families.Add(static_cast<double>(control.shards_restored), {{"outcome", "restored"}});
  families.Add(static_cast<double>(control.restores_failed), {{"outcome", "failed"}});
  families.Begin("unsent_control_messages_total", "Messages lost on the way to the coordinator.",
                 kCounter);
  families.Add(static_cast<double>(control.unsent_messages));
  families.Begin("registered", "1 while registered with the leading coordinator.", kGauge);
  families.Add(control.registered ? 1 : 0);
  return families.Text();
}

}  // namespace ps::server
