// Waits until nodes that drain have nothing any more.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "cli/api.h"
#include "cli/environment.h"

namespace ps::cli {

// "fashion-mlp,ledger", of a list of names or numbers; empty if it is none.
std::string JobNames(const Json& jobs);

// `answer`: {nodes} as the API gave it last; the newest one is returned. What they still have goes
// to the error stream. kTimeout after `timeout_ms`, kClosed when the user interrupted: the drain
// goes on in both cases. That no coordinator answers is borne.
Result<Json> WaitUntilDrained(Api& api, Environment& environment, Json answer,
                              const std::set<std::string>& names, std::int64_t timeout_ms);

}  // namespace ps::cli
