// Where checkpoints lie below a folder of them (FORMAT.md): "job-7/ckpt-12". Pure; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "common/ids.h"

namespace ps::checkpoint {

std::string JobFolder(JobId job);               // "job-7"
std::string RoundFolder(Round round);           // "ckpt-12"
std::string RoundPath(JobId job, Round round);  // "job-7/ckpt-12"

// Whose folder it is; nothing: that of no job, or round.
std::optional<JobId> JobOfFolder(std::string_view name);
std::optional<Round> RoundOfFolder(std::string_view name);

}  // namespace ps::checkpoint
