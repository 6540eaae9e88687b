// Jobs and their workers as tables for people.
#pragma once

#include <ostream>
#include <string>

#include "cli/output.h"

namespace ps::cli {

// JOBs of the REST interface; members may be missing.
void WriteJobs(std::ostream& out, const Json& jobs, bool wide);
void WriteWorkers(std::ostream& out, const Json& workers);

std::string PercentOf(const Json& job);  // "12%" of what there is to train
std::string ResultOf(const Json& job);   // the metric that came out

}  // namespace ps::cli
