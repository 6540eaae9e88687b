// What checkpoint.load of a new job means among the jobs that there are.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "coordinator/core/job.h"

namespace ps::coordinator {

// Null if there is no job of that name or number.
using JobFinder = std::function<const Job*(const std::string&)>;

// Puts the number of the job and of the round into each source that is a checkpoint: a name means
// another job later, and the newest checkpoint another one. kNotFound if there is none.
Status PinLoadSources(JobSpec& spec, const JobFinder& find);

// Of a spec with pinned sources, whose model the preflight has looked at. kInvalid, with all that
// is wrong, if the mapping cannot be; kNotFound if a checkpoint is gone since. One sentence a
// source, for the events.
Result<std::vector<std::string>> CheckLoadSources(const JobSpec& spec,
                                                  const control::PreflightResultT& preflight,
                                                  const JobFinder& find);

// The job's resolved spec, but for sources that are files.
std::string SpecWithoutFiles(const JobDefinition& definition);

// Checkpoints of `job` that a job with this spec loads parts of.
std::set<Round> RoundsLoaded(const JobSpec& spec, JobId job);

}  // namespace ps::coordinator
