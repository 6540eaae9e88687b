// From a job file to what a task trains: data sets and workload, checked against
// each other.
//
// All that the files can have wrong is kInvalid and names the file or the key.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "ps-worker/engine/collective.h"
#include "ps-worker/engine/data/dataset.h"
#include "ps-worker/engine/dense_parameters.h"
#include "ps-worker/engine/file_values.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/workload.h"

namespace ps::worker {

struct LoadedTask {
  std::unique_ptr<Dataset> train;
  std::unique_ptr<Dataset> test;       // null: the job has no test data
  std::unique_ptr<Workload> workload;  // its tables have the values of checkpoint.load's files
  FileValues files;
};

// Where a task computes, and who keeps its parameters there; by default on the CPU.
struct TaskDevice {
  // Several: each computes a part of every batch (replicated_model.h), the first has the
  // parameters.
  std::vector<ModelDevice> models{ModelDevice()};
  // What joins several.
  std::function<Result<std::unique_ptr<Collective>>()> make_collective;
  MakeDenseParameters make_parameters;
};

// Reads the data, builds the model. Call SetComputeThreads (model.h) before.
Result<LoadedTask> LoadTask(const JobSpec& spec, const TaskDevice& device = {});

// Loads the task and tries it: one batch forward and backward, one in evaluation. `ok` and `error`
// of the result say what came of it; layout and data are set if it is ok.
control::PreflightResultT Preflight(const JobSpec& spec, const TaskDevice& device = {});

}  // namespace ps::worker
