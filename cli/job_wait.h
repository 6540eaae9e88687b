// Waits until a job is over, showing how it goes.
#pragma once

#include <optional>
#include <string>

#include "cli/api.h"
#include "cli/environment.h"

namespace ps::cli {

struct WaitOptions {
  std::optional<std::int64_t> timeout_ms;
  bool quiet = false;   // no progress, only the end
  std::string phase{};  // not until the job is over, but until it has this one
};

// How long a wait goes on while no coordinator answers.
inline constexpr std::int64_t kAwayMaxMs = 60'000;
inline constexpr std::chrono::milliseconds kPollPause{500};

// The job when it is over, or has the phase. Progress and events go to the error stream. kTimeout
// when the time is over, kClosed when the user interrupted: the job goes on in both cases. That no
// coordinator answers is borne for kAwayMaxMs.
Result<Json> WaitForJob(Api& api, Environment& environment, const std::string& job,
                        const WaitOptions& options);

// 0 for succeeded and imported, 8 for failed, 9 for cancelled.
ExitCode ExitCodeOfJob(const Json& job);

}  // namespace ps::cli
