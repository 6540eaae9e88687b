// What the API says about a job.
#include <algorithm>
#include <cmath>
#include <ctime>

#include "coordinator/core/describe.h"
#include "coordinator/core/job.h"
#include "coordinator/core/job_round.h"

namespace ps::coordinator {
namespace {

nlohmann::json Number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

double Ratio(double a, double b) { return b > 0 ? a / b : 0; }

// 0: not begun. Clocks of leaders may differ.
double SecondsSince(std::uint64_t begun_ms, std::uint64_t now_ms) {
  return begun_ms == 0 || now_ms < begun_ms ? 0.0 : static_cast<double>(now_ms - begun_ms) / 1000.0;
}

}  // namespace

nlohmann::json Job::DescribeCheckpoint(const CommittedCheckpoint& checkpoint) const {
  nlohmann::json bases = nlohmann::json::array();
  for (const Round base : checkpoint.bases) bases.push_back(base.value());
  return {{"round", checkpoint.round.value()},
          {"time", TimeText(checkpoint.time_ms)},
          {"step", checkpoint.step},
          {"samples", checkpoint.samples},
          {"bytes", checkpoint.bytes},
          {"duration_ms", checkpoint.duration_ms},
          {"directory", checkpoint.directory},
          {"manifest_hash", checkpoint.manifest_hash},
          {"shards", definition_.shards},
          {"final", checkpoint.final_round},
          {"state_bytes", checkpoint.state_bytes},
          {"bases", std::move(bases)},
          {"damaged", checkpoint.damaged},
          {"pinned", checkpoint.pinned},
          {"copies", checkpoint.places.Copies()}};
}

std::string TimeText(std::uint64_t unix_ms) {
  if (unix_ms == 0) return "";
  const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  if (std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S.", &parts) == 0) return "";
  const std::string milliseconds = std::to_string(1000 + unix_ms % 1000).substr(1);
  return text + milliseconds + "Z";
}

nlohmann::json Job::DescribeCheckpoints() const {
  nlohmann::json list = nlohmann::json::array();
  for (const CommittedCheckpoint& checkpoint : state_.checkpoints) {
    list.push_back(DescribeCheckpoint(checkpoint));
  }
  return list;
}

nlohmann::json Job::Describe() const {
  const TrainingSpec& training = definition_.spec.training;
  control::ProgressT sum = finished_;
  double rate = 0;
  double loss = 0;
  std::size_t losses = 0;
  nlohmann::json workers = nlohmann::json::array();
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const WorkerSlot& worker = state_.workers[slot];
    if (slot >= state_.leases.workers() && worker.task == 0) continue;
    nlohmann::json entry = {{"worker", slot},
                            {"incarnation", worker.incarnation.value()},
                            {"node", worker.agent_name},
                            {"gpus", worker.task != 0 ? worker.gpus.size() : 0},
                            {"state", worker.live        ? "live"
                                      : worker.task != 0 ? "starting"
                                                         : "none"}};
    if (slots_[slot].progress && worker.task != 0) {
      const control::ProgressT& progress = *slots_[slot].progress;
      sum.steps += progress.steps;
      sum.skipped += progress.skipped;
      sum.overflows += progress.overflows;
      sum.anomalies += progress.anomalies;
      sum.redone += progress.redone;
      sum.dropped += progress.dropped;
      sum.too_old += progress.too_old;
      sum.pushes += progress.pushes;
      sum.push_bytes += progress.push_bytes;
      sum.push_entries += progress.push_entries;
      sum.pulls += progress.pulls;
      sum.pull_bytes += progress.pull_bytes;
      if (progress.metric_samples > sum.metric_samples) {
        sum.metric = progress.metric;
        sum.metric_samples = progress.metric_samples;
      }
      rate += progress.samples_per_second;
      if (progress.steps > 0 && std::isfinite(progress.loss)) {
        loss += progress.loss;
        ++losses;
      }
      entry.update({{"clock", progress.clock},
                    {"steps", progress.steps},
                    {"samples_per_second", Number(progress.samples_per_second)},
                    {"loss", Number(progress.loss)},
                    {"staleness_p50", Number(progress.staleness_p50)},
                    {"staleness_p99", Number(progress.staleness_p99)},
                    {"residual_norm", Number(progress.residual_norm)},
                    {"retained_bytes", progress.retained_bytes},
                    {"retained_limit", progress.retained_limit},
                    {"wait_data_ms", progress.wait_data_ms},
                    {"wait_pull_ms", progress.wait_pull_ms},
                    {"longest_pull_ms", progress.longest_pull_ms},
                    {"wait_push_ms", progress.wait_push_ms},
                    {"compute_ms", progress.compute_ms},
                    {"precision", progress.precision}});
      if (progress.loss_scale > 0) {
        entry["loss_scale"] = Number(progress.loss_scale);
        entry["growth_tracker"] = progress.growth_tracker;
      }
      if (shares_) {
        entry["push_records"] = shares_->push_records(slot);
        entry["compute_samples_per_second"] =
            shares_->speed(slot) > 0 ? Number(shares_->speed(slot)) : nlohmann::json();
      }
    }
    workers.push_back(std::move(entry));
  }
  const std::uint64_t trained = state_.leases.trained();
  const std::uint64_t total = state_.leases.total();
  const auto parameters = static_cast<double>(definition_.layout.parameters);
  // Rows are made on use: there is no dense model to compare the traffic with.
  const bool has_rows = !definition_.layout.row_tables.empty();
  nlohmann::json row_tables = nlohmann::json::array();
  for (const auto& table : definition_.layout.row_tables) {
    row_tables.push_back({{"name", table->name}, {"width", table->width}});
  }
  nlohmann::json progress = {
      {"epochs", training.epochs},
      {"records", definition_.data.records},
      {"samples_trained", trained},
      {"samples_total", total},
      {"repeated_samples", state_.leases.repeated()},
      {"steps", sum.steps},
      {"min_clock", MinClock()},
      {"samples_per_second", Number(rate)},
      {"loss", losses > 0 ? Number(loss / static_cast<double>(losses)) : nlohmann::json()},
      {"metric", sum.metric_samples > 0 ? Number(sum.metric) : nlohmann::json()},
      {"metric_samples", sum.metric_samples},
      {"metric_name", training.metric},
      {"pushes", sum.pushes},
      {"push_bytes", sum.push_bytes},
      {"push_entries", sum.push_entries},
      {"pulls", sum.pulls},
      {"pull_bytes", sum.pull_bytes},
      {"push_bytes_per_step",
       Ratio(static_cast<double>(sum.push_bytes), static_cast<double>(sum.steps))},
      {"pull_bytes_per_step",
       Ratio(static_cast<double>(sum.pull_bytes), static_cast<double>(sum.pulls))},
      {"dense_bytes",
       has_rows ? nlohmann::json() : nlohmann::json(definition_.layout.parameters * 4)},
      {"push_bytes_per_entry",
       Ratio(static_cast<double>(sum.push_bytes), static_cast<double>(sum.push_entries))},
      {"pull_bytes_per_parameter",
       has_rows ? nlohmann::json()
                : nlohmann::json(Ratio(static_cast<double>(sum.pull_bytes),
                                       static_cast<double>(sum.pulls) * parameters))},
      {"seconds_left", rate > 0 && !over() ? Number(static_cast<double>(total - trained) / rate)
                                           : nlohmann::json()},
      {"skipped", sum.skipped},
      {"overflows", sum.overflows},
      {"implausible", sum.anomalies},
      {"implausible_redone", sum.redone},
      {"implausible_skipped", sum.dropped},
      {"too_old", sum.too_old}};
  nlohmann::json json = {
      {"id", state_.id.value()},
      {"name", state_.name},
      {"phase", PhaseName(state_.phase)},
      {"owner", state_.origin.owner},
      {"reason", state_.reason},
      {"created", TimeText(state_.created_ms)},
      {"started", TimeText(state_.started_ms)},
      {"finished", TimeText(state_.finished_ms)},
      {"seconds", SecondsSince(state_.started_ms, over() ? state_.finished_ms : cluster_.now_ms())},
      {"generation", state_.generation},
      {"gpus_per_worker", definition_.spec.resources.gpus},
      {"restarts", state_.restarts},
      {"parameters", definition_.layout.parameters},
      {"embedding_tables", std::move(row_tables)},
      {"shards", definition_.shards},
      {"replicas", definition_.spec.resources.replicas},
      {"replicated_shards", ReplicatedShards()},
      {"servers", OffCluster() ? 0 : FirstServers().size()},
      {"suspending", state_.suspending},
      {"workers_wanted", state_.leases.workers()},
      {"workers", std::move(workers)},
      {"progress", std::move(progress)},
      {"checkpoints", state_.checkpoints.size()},
      {"event_counts", event_counts_},
      {"recoveries",
       {{"count", recoveries_}, {"seconds", static_cast<double>(recovery_ms_) / 1000.0}}}};
  if (!state_.checkpoints.empty()) {
    json["last_checkpoint"] = DescribeCheckpoint(state_.checkpoints.back());
    json["checkpoint_age_seconds"] =
        SecondsSince(state_.checkpoints.back().time_ms, cluster_.now_ms());
  }
  if (round_) json["open_checkpoint"] = round_->number.value();
  if (state_.result) {
    json["result"] = {{"metric_name", state_.result->metric_name},
                      {"metric", state_.result->metric},
                      {"loss", state_.result->loss},
                      {"records", state_.result->records}};
    if (state_.result->metric_name == "accuracy") {
      json["result"]["test_accuracy"] = state_.result->metric;
    }
  }
  return json;
}

}  // namespace ps::coordinator
