// The files that a job's initial values come from (checkpoint.load with `file`).
//
// Every task that may be asked for initial values has the same file, as it has the
// same data: the coordinator compares a fingerprint of what was read of it. Once
// the job has a checkpoint tasks get a spec without files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/result.h"
#include "ps-worker/engine/workload.h"

namespace ps::worker {

struct FileValues {
  std::vector<std::string> tensors;  // of the job, that have values of a file
  std::uint64_t fingerprint = 0;     // of these values; 0 if there are none
};

// Puts them into the workload's tables, before Prepare(). kInvalid, with the source and all that is
// wrong.
Result<FileValues> LoadFileValues(const JobSpec& spec, Workload& workload);

}  // namespace ps::worker
