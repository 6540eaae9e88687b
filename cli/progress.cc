#include "cli/progress.h"

#include <algorithm>
#include <cstdio>

namespace ps::cli {
namespace {

constexpr std::int64_t kLineEveryMs = 5'000;

std::string JobTitle(const Json& job) {
  return "job " + TextOf(job, "id", "?") + " " + TextOf(job, "name");
}

std::optional<double> DonePercent(const Json& progress) {
  const auto trained = NumberOf(progress, "samples_trained");
  const auto total = NumberOf(progress, "samples_total");
  if (!trained || !total || *total <= 0) return std::nullopt;
  return std::min(100.0, 100.0 * *trained / *total);
}

std::string PercentText(const std::optional<double>& percent) {
  return percent ? CountText(static_cast<std::int64_t>(*percent)) + " %" : "- %";
}

// " (1.2 % of dense)"
std::string OfDense(const std::optional<double>& bytes, const std::optional<double>& dense) {
  if (!bytes || !dense || *dense <= 0) return "";
  char text[48];
  (void)std::snprintf(text, sizeof text, " (%.3g %% of dense)", 100.0 * *bytes / *dense);
  return text;
}

// A job without a metric (the ledger) still has a number that it ends with: its sum.
std::string MetricName(const Json& progress) {
  const std::string name = TextOf(progress, "metric_name", "accuracy");
  if (name == "none") return "sum";
  return name.rfind("test", 0) == 0 ? name : "test " + name;
}

std::size_t LiveWorkers(const Json& job) {
  const Json& workers = MemberOf(job, "workers");
  return workers.is_array() ? workers.size() : 0;
}

}  // namespace

// Cut to the terminal's width, so that one line stays one line when it is erased.
std::string Fitted(const std::string& text, int columns) {
  std::string fitted;
  int width = 0;
  for (const char c : Printable(text)) {
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80 && ++width >= columns) break;
    fitted += c;
  }
  return fitted;
}

std::optional<double> LargestOfWorkers(const Json& job, const char* key) {
  std::optional<double> largest;
  const Json& workers = MemberOf(job, "workers");
  if (!workers.is_array()) return largest;
  for (const Json& worker : workers) {
    const auto value = NumberOf(worker, key);
    if (value && (!largest || *value > *largest)) largest = value;
  }
  return largest;
}

bool IsFinished(const Json& job) {
  const std::string phase = TextOf(job, "phase");
  return phase == "succeeded" || phase == "failed" || phase == "cancelled" || phase == "imported";
}

std::vector<std::string> ProgressBlock(const Json& job) {
  const Json& progress = MemberOf(job, "progress");
  const auto dense = NumberOf(progress, "dense_bytes");
  const auto pushed = NumberOf(progress, "push_bytes_per_step");
  const auto pulled = NumberOf(progress, "pull_bytes_per_step");
  const auto epochs = NumberOf(progress, "epochs");

  std::string head = JobTitle(job) + ": " + TextOf(job, "phase", "unknown");
  if (const std::string reason = TextOf(job, "reason"); !reason.empty()) head += " - " + reason;
  std::string done = "  " + PercentText(DonePercent(progress));
  if (epochs) done += " of " + DecimalText(epochs) + (*epochs == 1 ? " epoch" : " epochs");
  done += ", " + CountText(NumberOf(progress, "samples_trained")) + " samples, time left " +
          DurationText(NumberOf(progress, "seconds_left"));
  const std::string speed = "  steps " + CountText(NumberOf(progress, "steps")) + "  samples/s " +
                            CountText(NumberOf(progress, "samples_per_second")) + "  loss " +
                            DecimalText(NumberOf(progress, "loss")) + "  " + MetricName(progress) +
                            " " + DecimalText(NumberOf(progress, "metric"));
  const std::string lag = "  workers " + std::to_string(LiveWorkers(job)) + "  staleness p50 " +
                          DecimalText(LargestOfWorkers(job, "staleness_p50")) + " p99 " +
                          DecimalText(LargestOfWorkers(job, "staleness_p99")) + "  checkpoints " +
                          CountText(NumberOf(job, "checkpoints"));
  const std::string traffic = "  a step pushes " + BytesText(pushed) + OfDense(pushed, dense) +
                              ", pulls " + BytesText(pulled) + OfDense(pulled, dense);
  return {head, done, speed, lag, traffic};
}

std::string ProgressLine(const Json& job) {
  const Json& progress = MemberOf(job, "progress");
  const auto dense = NumberOf(progress, "dense_bytes");
  const auto pushed = NumberOf(progress, "push_bytes_per_step");
  const auto pulled = NumberOf(progress, "pull_bytes_per_step");
  return Printable(
      JobTitle(job) + " " + TextOf(job, "phase", "unknown") + " " +
      PercentText(DonePercent(progress)) + "  steps " + CountText(NumberOf(progress, "steps")) +
      "  samples/s " + CountText(NumberOf(progress, "samples_per_second")) + "  loss " +
      DecimalText(NumberOf(progress, "loss")) + "  " + MetricName(progress) + " " +
      DecimalText(NumberOf(progress, "metric")) + "  staleness p50 " +
      DecimalText(LargestOfWorkers(job, "staleness_p50")) + " p99 " +
      DecimalText(LargestOfWorkers(job, "staleness_p99")) + "  push " + BytesText(pushed) +
      OfDense(pushed, dense) + " pull " + BytesText(pulled) + OfDense(pulled, dense) + "  left " +
      DurationText(NumberOf(progress, "seconds_left")));
}

std::string ResultText(const Json& job) {
  const Json& progress = MemberOf(job, "progress");
  const Json& result = MemberOf(job, "result");
  std::vector<std::pair<std::string, std::string>> fields;
  fields.emplace_back("job", TextOf(job, "id") + " (" + TextOf(job, "name") + ")");
  fields.emplace_back("phase", TextOf(job, "phase", "unknown"));
  if (const std::string reason = TextOf(job, "reason"); !reason.empty()) {
    fields.emplace_back("reason", reason);
  }
  if (result.is_object()) {
    if (const auto accuracy = NumberOf(result, "test_accuracy")) {
      fields.emplace_back("test accuracy", DecimalText(accuracy));
    } else if (const auto metric = NumberOf(result, "metric")) {
      fields.emplace_back(MetricName(result),
                          MetricName(result) == "sum" ? CountText(metric) : DecimalText(metric));
    }
    fields.emplace_back("test loss", DecimalText(NumberOf(result, "loss")));
    fields.emplace_back("test records", CountText(NumberOf(result, "records")));
  }
  fields.emplace_back("steps", CountText(NumberOf(progress, "steps")));
  fields.emplace_back("samples", CountText(NumberOf(progress, "samples_trained")));
  if (const auto repeated = NumberOf(progress, "repeated_samples"); repeated && *repeated > 0) {
    fields.emplace_back("repeated samples", CountText(repeated));
  }
  fields.emplace_back("checkpoints", CountText(NumberOf(job, "checkpoints")));
  const Json& last = MemberOf(job, "last_checkpoint");
  if (last.is_object()) {
    fields.emplace_back("last checkpoint", TextOf(job, "id") + "@" + TextOf(last, "round"));
  }
  return FieldsText(fields);
}

void ProgressView::Erase() {
  if (drawn_lines_ == 0) return;
  environment_.err << "\x1b[" << drawn_lines_ << "A\x1b[J";
  drawn_lines_ = 0;
}

void ProgressView::Show(const Json& job) {
  if (environment_.err_is_terminal) {
    Erase();
    block_ = ProgressBlock(job);
    for (const auto& line : block_) environment_.err << Fitted(line, environment_.columns) << "\n";
    drawn_lines_ = block_.size();
    environment_.err.flush();
    return;
  }
  const std::string phase = TextOf(job, "phase");
  const std::int64_t now = environment_.now_ms();
  if (phase == phase_ && now - last_line_ms_ < kLineEveryMs) return;
  phase_ = phase;
  last_line_ms_ = now;
  environment_.err << ProgressLine(job) << std::endl;
}

void ProgressView::Note(const std::string& text) {
  const std::size_t lines = drawn_lines_;
  Erase();
  environment_.err << Printable(text) << "\n";
  if (lines > 0) {
    for (const auto& line : block_) environment_.err << Fitted(line, environment_.columns) << "\n";
    drawn_lines_ = block_.size();
  }
  environment_.err.flush();
}

}  // namespace ps::cli
