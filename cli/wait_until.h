// Waits until the cluster is as an operator has asked it to be.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>

#include "cli/api.h"
#include "cli/environment.h"

namespace ps::cli {

// "fashion-mlp,ledger", of a list of names or numbers; empty if it is none.
std::string JobNames(const Json& jobs);

// Asks for `path` again and again until `missing` of the answer is empty; the newest answer is
// returned. `answer`: what is known before. What is missing goes to the error stream when it
// changes. kTimeout after `timeout_ms`, with `next` as what tells more; kClosed when the user
// interrupted; what `missing` says is an error. In all cases what is waited for goes on. That no
// coordinator answers is borne.
Result<Json> WaitUntil(Api& api, Environment& environment, const std::string& path, Json answer,
                       const std::function<Result<std::string>(const Json&)>& missing,
                       std::int64_t timeout_ms, const std::string& next);

// Until the nodes have nothing any more; `answer`: {nodes}.
Result<Json> WaitUntilDrained(Api& api, Environment& environment, Json answer,
                              const std::set<std::string>& names, std::int64_t timeout_ms);

}  // namespace ps::cli
