// Where the files of a checkpoint are: on this machine, or on the servers, from which they are
// fetched.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/remote/fetch.h"
#include "cli/api.h"
#include "cli/commands.h"
#include "cli/environment.h"
#include "cli/output.h"
#include "common/result.h"

namespace ps::cli {

// A checkpoint on this machine's disk, and the hash that the cluster committed for it.
struct Located {
  std::filesystem::path directory;
  std::string hash;                       // empty: unknown, for --dir
  std::shared_ptr<const void> temporary;  // what was fetched goes with it
};

// The checkpoints of a job, as the REST interface has them.
Result<Json> ListCheckpoints(Api& api, const std::string& job);

// One of them; `round` empty: the newest. kNotFound says what there is.
Result<Json> FindRound(Api& api, const std::string& job, const std::string& round);

// Looks below `root`, which is the --checkpoint-dir of the servers, or if it is empty in that of
// the local cluster. A checkpoint that is not there is fetched from the servers into a temporary
// folder, unless `root` was given: then that is an error.
Result<Located> LocateRound(Globals& globals, const std::string& job, const std::string& round,
                            const std::string& root);

struct FetchLimits {
  std::uint64_t bytes_per_second = 0;  // 0: none
};

// "JOB@ROUND"; without a round: "JOB" and "".
std::pair<std::string, std::string> SplitRound(const std::string& name);

// "50M": bytes a second, in powers of 1,000 (k, M, G).
Result<std::uint64_t> ParseRate(const std::string& text);

// Fetches from the servers what `order` names. Shows on a terminal how far it is.
Result<checkpoint::FetchReport> FetchRound(Environment& environment, Api& api,
                                           const checkpoint::FetchOrder& order,
                                           const FetchLimits& limits);

// The order for one of ListCheckpoints(): to the path below `root` that it has on the servers.
checkpoint::FetchOrder OrderOf(const Json& checkpoint, const std::filesystem::path& root);

}  // namespace ps::cli
