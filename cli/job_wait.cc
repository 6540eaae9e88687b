#include "cli/job_wait.h"

#include "cli/progress.h"
#include "common/error_id.h"

namespace ps::cli {
namespace {

// "2026-01-02T03:04:05.678Z" as "03:04:05".
std::string TimeOfDay(const std::string& time) {
  return time.size() >= 19 && time[10] == 'T' ? time.substr(11, 8) : time;
}

// Shows what happened since the last call. Events are a courtesy: errors here end no wait.
void ShowEvents(Api& api, const std::string& path, std::int64_t& seen, ProgressView& view) {
  const auto answer = api.Get(path + "/events?after=" + std::to_string(seen));
  if (!answer.ok()) return;
  for (const Json& event : MemberOf(*answer, "events")) {
    seen = std::max(seen, IntegerOf(event, "seq"));
    std::string what = TextOf(event, "message");
    if (what.empty()) what = TextOf(event, "type");
    view.Note(TimeOfDay(TextOf(event, "time")) + " " + what);
  }
}

}  // namespace

ExitCode ExitCodeOfJob(const Json& job) {
  const std::string phase = TextOf(job, "phase");
  if (phase == "succeeded" || phase == "imported") return ExitCode::kOk;
  return phase == "cancelled" ? ExitCode::kJobCancelled : ExitCode::kJobFailed;
}

Result<Json> WaitForJob(Api& api, Environment& environment, const std::string& job,
                        const WaitOptions& options) {
  ProgressView view(environment);
  const std::int64_t start = environment.now_ms();
  std::string path = "/v1/jobs/" + UrlEncode(job);
  std::int64_t seen_event = 0;
  std::int64_t away_since = -1;
  while (true) {
    auto answer = api.Get(path);
    if (answer.ok()) {
      if (away_since >= 0) view.Note("the coordinator answers again");
      away_since = -1;
      Json state = MemberOf(*answer, "job");
      // A name means the newest job of that name: stay with the one that was found first.
      const std::string id = TextOf(state, "id");
      if (id.empty())
        return Error{ErrorCode::kInternal, "the answer about job " + job + " has no id"};
      path = "/v1/jobs/" + UrlEncode(id);
      if (!options.quiet) {
        ShowEvents(api, path, seen_event, view);
        view.Show(state);
      }
      if (IsFinished(state) || TextOf(state, "phase") == options.phase) return state;
    } else if (answer.error().code != ErrorCode::kUnreachable) {
      return answer.error();
    } else {
      const std::int64_t now = environment.now_ms();
      if (away_since < 0) {
        away_since = now;
        view.Note(answer.error().message + "; waiting for it");
      }
      if (now - away_since > kAwayMaxMs) {
        return Annotate(answer.error(), "gave up on job " + job + ", which may go on: ");
      }
    }
    if (environment.interrupted()) {
      return Error{ErrorCode::kClosed, "interrupted"};
    }
    if (options.timeout_ms && environment.now_ms() - start >= *options.timeout_ms) {
      return Error{ErrorId::kJobWaitTimeout,
                   "job " + job + " is not " + (options.phase.empty() ? "over" : options.phase) +
                       " after " + DurationText(static_cast<double>(*options.timeout_ms) / 1000.0) +
                       "; it goes on (`ds-cli job wait " + job + "`)"};
    }
    environment.sleep(kPollPause);
  }
}

}  // namespace ps::cli
